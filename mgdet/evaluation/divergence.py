"""How far the two tasks of a detector disagree: rank correlation of classification score and localization quality.

The idea is that of Zhang et al., "Modulating Localization and Classification for Harmonized Object Detection" (ICME
2021), whose text names a Spearman metric but could not be had; this is a documented reconstruction. Rank boxes once by
score and once by IoU with their object: rho = 1 when the two tasks agree on the order, and the divergence is 1 - rho.
Which boxes are taken matters, so every number is named by its population. Of the final detections:

- `per_class`     those that greedily match an object of their class at IoU >= 0.5, class by class; mean over classes
                  (rho_cls of Kahraman et al., "Correlation Loss", AAAI 2023). `divergence` is one minus this.
- `post_nms`      the same detections of all classes together: one rho.

Of the predictions before suppression, which have the score for the class of their best object:

- `pre_nms`       per object, over all predicted boxes whose best object it is, with IoU >= 0.5; mean over objects.
                  `divergence_pre_nms` is one minus this.
- `pre_nms_top50` per object, over its 50 best scored such boxes with IoU > 0.1; mean over objects (after Feng et al.,
                  "TOOD", ICCV 2021, section 4.3, who correlate the rankings of the 50 most confident predictions).
- `per_image`     over all boxes of `pre_nms` in an image; mean over images (rho_img of Kahraman et al.).

Three kinds of scores are told apart: `raw`, the classification's; `rescored`, with a predicted quality; and `oracle`,
the raw score times the true IoU, which is what a perfect quality branch would rank by. The divergence of `raw` says
what the labels achieve, that of `rescored` what the branch adds, and that of `oracle` what would be left with a perfect
branch in a product or geometric mean. The boxes of a population are the same for all three: the final detections stay
those that the final score has chosen.

A rho of fewer than `min_candidates` (3) boxes, or of constant scores or IoUs, is undefined: it enters no mean, and a
mean of nothing is absent, never 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from mgdet.config_base import Config
from mgdet.errors import MgdetError
from mgdet.evaluation.candidates import CandidateBatch, match_candidates, top_per_group
from mgdet.evaluation.metric import Arrays
from mgdet.evaluation.spearman import GroupCorrelation, spearman_by_group
from mgdet.structures import Targets

ORACLE_NAME = "oracle"
FINAL_NAME = "rescored"
"""The score tensor that ranks the detections when there are several; else the first one does."""


class DivergenceConfig(Config):
    """Which boxes the correlations are taken over."""

    iou_floor: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="least IoU with its best object of a pre_nms and per_image candidate, and of a post_nms match",
    )
    top_k: int = Field(
        default=50, ge=3, le=100_000, description="best scored boxes of an object that pre_nms_top<k> correlates"
    )
    top_iou_floor: float = Field(
        default=0.1, ge=0, lt=1, description="IoU that a box of pre_nms_top<k> has more of with its object"
    )
    min_candidates: int = Field(
        default=3,
        ge=3,
        le=10**9,
        description="objects, images and classes with fewer boxes have no rho and enter no mean",
    )
    scatter_points: int = Field(
        default=4000,
        ge=0,
        le=1_000_000,
        description="size of the random sample of pre_nms candidates that is kept to be drawn",
    )
    chunk_elements: int = Field(
        default=1 << 24,
        ge=1,
        le=2**53,
        description="most IoU values held at once on the device; never changes the result",
    )


class Population(NamedTuple):
    """One correlation and how many objects, images, classes or detections it stands on. `rho` is None where n is 0."""

    rho: float | None
    n: int
    boxes: int = 0  # of `per_class`: the detections of the `n` classes


UNDEFINED = Population(None, 0)


@dataclass(frozen=True)
class DivergenceResult:
    """The correlations of every score, by score name and population (see the module's docstring)."""

    final: str | None  # the score that ranks the detections; None if nothing was seen
    populations: dict[str, dict[str, Population]]
    n_candidates: int  # boxes of `pre_nms`, whether or not their object has a rho
    sample_iou: NDArray[np.floating[Any]]  # [S] a random sample of them
    sample_scores: dict[str, NDArray[np.floating[Any]]]  # each [S]
    recall: float | None = None  # share of the objects, crowds not counted, that a final detection matches

    def divergence(self, population: str = "per_class", score: str | None = None) -> float | None:
        """`1 - rho` of a population, in [0, 2], for the named score or the final one; None where rho is undefined."""
        rho = self.populations.get(score or self.final or "", {}).get(population, UNDEFINED).rho
        return None if rho is None else 1.0 - rho

    def metrics(self) -> dict[str, float]:
        """What is defined, under its tracking name; plain Python numbers.

        `val/divergence` with `..._n` and `..._recall`, `val/divergence_pre_nms`, `val/spearman/<population>` and
        `..._n`. Scores other than the final one carry their name: `val/divergence_raw`, `val/divergence_pre_nms_raw`,
        `val/spearman/raw/pre_nms`.
        """
        values: dict[str, float | None] = {"val/divergence_recall": self.recall}
        for name, populations in self.populations.items():
            suffix, below = ("", "") if name == self.final else (f"_{name}", f"{name}/")
            values[f"val/divergence{suffix}"] = self.divergence("per_class", name)
            values[f"val/divergence_pre_nms{suffix}"] = self.divergence("pre_nms", name)
            defined = {key: found for key, found in populations.items() if found.rho is not None}
            values |= {f"val/spearman/{below}{key}": found.rho for key, found in defined.items()}
            values |= {f"val/spearman/{below}{key}_n": found.n for key, found in defined.items()}
            if name == self.final and "per_class" in defined:
                values["val/divergence_n"] = defined["per_class"].boxes
        return {name: value for name, value in values.items() if value is not None}


class DivergenceAccumulator:
    """Collects rho per object and image batch by batch, since none spans two batches; memory is that of the objects."""

    def __init__(self, config: DivergenceConfig) -> None:
        self.config = config
        self._names: tuple[str, ...] = ()
        self._parts: list[Arrays] = []

    def update(self, positions: Tensor, boxes: Tensor, scores: Mapping[str, Tensor], targets: Targets) -> None:
        """Takes in the predictions `[B, A, 4]` of the images at `positions [B]`; see `match_candidates`.

        The score named `rescored`, else the first one, is the one that ranks the detections. Raises MgdetError if the
        names differ from those of earlier batches.
        """
        names = tuple(scores)
        if not names or (self._names and names != self._names):
            expected = self._names or "at least one"
            raise MgdetError(f"score names are {names}, but {expected} expected: pass the same names with every batch")
        self._names = names
        cfg = self.config
        top_rule = (cfg.top_k, cfg.top_iou_floor)
        found = match_candidates(boxes, scores, targets, cfg.iou_floor, positions, cfg.chunk_elements, top_rule)
        dense, near = found.iou >= cfg.iou_floor, np.flatnonzero(found.iou > cfg.top_iou_floor)
        part: Arrays = {}
        for name, score in found.scores.items():
            part[f"{name}/pre_nms"] = self._rho(found.object, score, found.iou, dense)
            part[f"{name}/per_image"] = self._rho(found.image, score, found.iou, dense)
            object_, score_ = torch.from_numpy(found.object[near]), torch.from_numpy(score[near])
            top = near[top_per_group(object_, score_, cfg.top_k).numpy()]
            part[f"{name}/{self._top_name}"] = self._rho(found.object, score, found.iou, top)
        for kind, group in (("pre_nms", found.object), ("per_image", found.image)):
            part[f"{ORACLE_NAME}/{kind}"] = self._rho(group, found.scores[names[0]] * found.iou, found.iou, dense)
        part["candidates"] = np.array([dense.sum()])
        part |= self._sample(found, dense)
        self._parts.append(part)

    def update_matches(
        self, labels: NDArray[Any], scores: Mapping[str, NDArray[Any]], ious: NDArray[Any], objects: int
    ) -> None:
        """Takes in the final detections of some images that matched an object: class, IoU and named scores, each `[m]`.

        `objects` is how many objects those images have, crowds not counted.
        """
        part = {"matches/label": labels, "matches/iou": ious, "matches/objects": np.array([objects])}
        self._parts.append(part | {f"matches/score/{name}": score for name, score in scores.items()})

    def state(self) -> Arrays:
        """Everything seen so far as flat arrays, to be sent to another rank and given to `merge`."""
        keys = sorted({key for part in self._parts for key in part})
        joined = {key: np.concatenate([part[key] for part in self._parts if key in part]) for key in keys}
        return {"names": np.array(self._names, dtype=np.str_), **self._thin(joined)}

    def merge(self, states: Sequence[Arrays]) -> "DivergenceAccumulator":
        """A new accumulator that has seen what the states have. Raises MgdetError if their score names differ."""
        out = DivergenceAccumulator(self.config)
        distinct = {tuple(s["names"].tolist()) for s in states} - {()}
        if len(distinct) > 1:
            raise MgdetError(f"ranks scored their boxes under different names: {sorted(distinct)}")
        out._names = distinct.pop() if distinct else ()
        out._parts = [{k: v for k, v in s.items() if k != "names"} for s in states]
        return out

    def compute(self) -> DivergenceResult:
        """The correlations of everything seen; the same to the last bit however batches were split over ranks."""
        state = self.state()
        kinds = ("pre_nms", self._top_name, "per_image")
        populations = {n: {kind: _mean(state[f"{n}/{kind}"]) for kind in kinds} for n in self._names}
        if self._names:
            populations[ORACLE_NAME] = {k: _mean(state[f"{ORACLE_NAME}/{k}"]) for k in ("pre_nms", "per_image")}
        final = FINAL_NAME if FINAL_NAME in self._names else next(iter(self._names), None)
        matched = final is not None and "matches/label" in state
        if matched:
            for name, score in self._match_scores(state).items():
                populations[name] |= self._of_matches(state["matches/label"], score, state["matches/iou"])
        objects = int(state["matches/objects"].sum()) if matched else 0
        none = np.zeros(0)
        return DivergenceResult(
            final=final,
            populations=populations,
            n_candidates=int(state["candidates"].sum()) if "candidates" in state else 0,
            sample_iou=state.get("sample/iou", none),
            sample_scores={n: state.get(f"sample/score/{n}", none) for n in self._names},
            recall=len(state["matches/label"]) / objects if objects else None,
        )

    @property
    def _top_name(self) -> str:
        return f"pre_nms_top{self.config.top_k}"

    def _rho(
        self, group: NDArray[np.int64], score: NDArray[Any], iou: NDArray[Any], chosen: NDArray[Any]
    ) -> NDArray[np.float64]:
        return self._defined(spearman_by_group(group[chosen], score[chosen], iou[chosen])).rho

    def _defined(self, found: GroupCorrelation) -> GroupCorrelation:
        keep = (found.size >= self.config.min_candidates) & ~np.isnan(found.rho)
        return GroupCorrelation(found.groups[keep], found.rho[keep], found.size[keep])

    def _match_scores(self, state: Arrays) -> Arrays:
        """The scores of the matched detections by name, the oracle's included."""
        scores = {name: state[f"matches/score/{name}"] for name in self._names}
        return scores | {ORACLE_NAME: scores[self._names[0]] * state["matches/iou"]}

    def _of_matches(self, label: NDArray[np.int64], score: NDArray[Any], iou: NDArray[Any]) -> dict[str, Population]:
        order = np.lexsort((iou, score, label))  # ranks join in any order; sums of so many are not always exact
        label, score, iou = label[order], score[order], iou[order]
        by_class = self._defined(spearman_by_group(label, score, iou))
        pooled = self._defined(spearman_by_group(np.zeros_like(label), score, iou))
        return {
            "per_class": _mean(by_class.rho)._replace(boxes=int(by_class.size.sum())),
            "post_nms": Population(float(pooled.rho[0]), len(label)) if len(pooled.rho) else UNDEFINED,
        }

    def _sample(self, found: CandidateBatch, chosen: NDArray[np.bool_]) -> Arrays:
        key = _shuffle_key(found.image[chosen], found.prior[chosen])
        scores = {f"sample/score/{name}": score[chosen] for name, score in found.scores.items()}
        return self._thin({"sample/key": key, "sample/iou": found.iou[chosen], **scores})

    def _thin(self, arrays: Arrays) -> Arrays:
        """Keeps the sample's lowest keys: the same sample in the end as if all candidates had been kept."""
        if "sample/key" not in arrays:
            return arrays
        keep = np.argsort(arrays["sample/key"], kind="stable")[: self.config.scatter_points]
        return {k: v[keep] if k.startswith("sample/") else v for k, v in arrays.items()}


def _mean(rho: NDArray[np.float64]) -> Population:
    # fsum rounds once, so the mean does not depend on the order in which ranks are joined
    return Population(math.fsum(rho) / len(rho), len(rho)) if len(rho) else UNDEFINED


def _shuffle_key(image: NDArray[np.int64], prior: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A fixed pseudorandom number for each prediction of the data set, `[n]`: the finalizer of SplitMix64 (Steele et
    al., OOPSLA 2014). Sampling by it needs no generator state and no order."""
    z = (image.astype(np.uint64) << np.uint64(32)) + prior.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
