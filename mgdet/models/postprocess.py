"""From raw predictions to final detections: threshold, top-k per level, NMS per class.

Every prior has a score for every class, and nearly all of these pairs are dropped. So only the best class of each prior
is scored at first: the `k` best pairs of a level belong to `k` of its priors, the `k` whose best pairs are best. Of
pairs with equal scores, which `torch.topk` keeps in no defined order, this could choose others than `topk` over all
pairs does; an image in which that could change a detection is done over with all pairs.
"""

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torchvision.ops import batched_nms

from mgdet.boxes import clip_to_image
from mgdet.config_base import Config
from mgdet.models.rescoring import Rescoring
from mgdet.structures import Detections, Predictions


class _Pairs(NamedTuple):
    """The best pairs of a prior and a class of a level, best first, or those of all levels one after the other."""

    scores: Tensor  # [B, K]; 0: did not pass the threshold
    labels: Tensor  # [B, K]
    priors: Tensor  # [B, K]


class _Kept(NamedTuple):
    """The `D` detections of one image, best score first."""

    boxes: Tensor  # [D, 4]
    scores: Tensor  # [D]
    labels: Tensor  # [D]
    priors: Tensor  # [D]


class PostProcess(Config):
    """The test-time settings; defaults are COCO's usual ones for RetinaNet."""

    score_threshold: float = Field(default=0.05, ge=0, lt=1, description="scores up to this are dropped before NMS")
    nms_iou: float = Field(default=0.5, gt=0, le=1, description="same-class boxes that overlap more are suppressed")
    pre_nms_top_k: int = Field(
        default=1000, ge=1, le=100_000, description="candidates kept on each pyramid level before NMS"
    )
    max_detections: int = Field(default=100, ge=1, le=10_000, description="detections kept per image")

    @torch.no_grad()
    def __call__(
        self, predictions: Predictions, rescoring: Rescoring, sizes: Tensor, original_sizes: Tensor
    ) -> Detections:
        """Final detections in the pixels of the original files.

        `rescoring` joins the predicted quality to the score, where there is one; `sizes` and `original_sizes` `[B, 2]`
        are (height, width) of the network input without padding and of the file.
        """
        scale = (original_sizes / sizes).flip(-1).repeat(1, 2).float()
        k, best = self.pre_nms_top_k, predictions.logits.amax(dim=2, keepdim=True)
        levels = self._pairs(predictions, rescoring, self._best_priors(best, predictions, rescoring), k + 1)
        ties = torch.stack([_best_tie(level.scores) for level in levels]).amax(dim=0)
        unknown = best.isnan().flatten(1).any(dim=1)  # which class of a prior is the best
        if predictions.quality is not None:
            unknown |= predictions.quality.isnan().any(dim=1)
        found = _joined([_Pairs(*(t[:, :k] for t in level)) for level in levels])
        kept = [self._suppress(found, predictions, sizes, i) for i in range(len(sizes))]
        for i, (nan, tie) in enumerate(zip(unknown.tolist(), ties.tolist(), strict=True)):
            worst = float(kept[i].scores[-1]) if len(kept[i].scores) == self.max_detections else 0.0
            if nan or (tie > 0 and tie >= worst):
                image, every = predictions[i : i + 1], torch.arange(best.shape[1], device=best.device)[None]
                priors = list(torch.split(every, list(predictions.priors.level_counts), 1))
                found = _joined(self._pairs(image, rescoring, priors, k))
                kept[i] = self._suppress(found, image, sizes[i : i + 1], 0)
        return _padded([one._replace(boxes=one.boxes * s) for one, s in zip(kept, scale, strict=True)], best.device)

    def _scores(self, logits: Tensor, quality: Tensor | None, rescoring: Rescoring) -> Tensor:
        """The scores `[B, N, C]` that rank the detections; 0 where the threshold is not passed."""
        scores = rescoring.scores_of_some(logits, quality)
        ranking = next(reversed(scores.values()))
        return torch.where(rescoring.gate(scores["raw"], ranking) > self.score_threshold, ranking.float(), 0.0)

    def _best_priors(self, best: Tensor, predictions: Predictions, rescoring: Rescoring) -> list[Tensor]:
        """The `k + 1` priors of each level that have the best pairs, ascending `[B, N]`: one more tells of ties."""
        scores = self._scores(best, predictions.quality, rescoring).squeeze(2)
        out, first = [], 0
        for level in torch.split(scores, list(predictions.priors.level_counts), 1):
            chosen = level.topk(min(self.pre_nms_top_k + 1, level.shape[1]), dim=1, sorted=False).indices
            out.append(chosen.sort(dim=1).values + first)
            first += level.shape[1]
        return out

    def _pairs(self, predictions: Predictions, rescoring: Rescoring, priors: list[Tensor], count: int) -> list[_Pairs]:
        """The `count` best pairs of each level among its `priors` `[B, N]`."""
        num_classes = predictions.logits.shape[2]
        index = torch.cat(priors, 1)
        image = torch.arange(len(index), device=index.device)[:, None]
        quality = None if predictions.quality is None else predictions.quality[image, index]
        scores = self._scores(predictions.logits[image, index], quality, rescoring)
        out = []
        for level, own in zip(torch.split(scores, [p.shape[1] for p in priors], 1), priors, strict=True):
            flat = level.flatten(1)
            top, pair = flat.topk(min(count, flat.shape[1]), dim=1)
            prior = own.gather(1, pair.div(num_classes, rounding_mode="floor"))
            out.append(_Pairs(top, pair % num_classes, prior))
        return out

    def _suppress(self, found: _Pairs, predictions: Predictions, sizes: Tensor, i: int) -> _Kept:
        """The detections of image `i`, in pixels of the network's input."""
        over = found.scores[i] > 0  # what did not pass the threshold was set to 0
        scores, labels, priors = found.scores[i][over], found.labels[i][over], found.priors[i][over]
        boxes = clip_to_image(predictions.boxes[i, priors].float()[None], sizes[i : i + 1])[0]
        keep = batched_nms(boxes, scores, labels, self.nms_iou)[: self.max_detections]
        return _Kept(boxes[keep], scores[keep], labels[keep], priors[keep])


def _joined(levels: list[_Pairs]) -> _Pairs:
    return _Pairs(*(torch.cat(columns, 1) for columns in zip(*levels, strict=True)))


def _best_tie(scores: Tensor) -> Tensor:
    """The best score that two of the sorted `scores` `[B, N]` share, `[B]`; 0 where no two do."""
    shared = torch.where(scores[:, 1:] == scores[:, :-1], scores[:, 1:], 0.0)
    return torch.cat([shared, shared.new_zeros(len(shared), 1)], 1).amax(dim=1)


def _padded(kept: list[_Kept], device: torch.device) -> Detections:
    rows = max((len(k.scores) for k in kept), default=0)
    out = Detections(
        torch.zeros(len(kept), rows, 4, device=device),
        torch.zeros(len(kept), rows, device=device),
        torch.zeros(len(kept), rows, dtype=torch.int64, device=device),
        torch.zeros(len(kept), rows, dtype=torch.bool, device=device),
        torch.zeros(len(kept), rows, dtype=torch.int64, device=device),
    )
    for i, image in enumerate(kept):
        n = len(image.scores)
        out.boxes[i, :n] = image.boxes
        out.scores[i, :n] = image.scores
        out.labels[i, :n] = image.labels
        out.valid[i, :n] = True
        out.priors[i, :n] = image.priors
    return out
