"""Mutual Guidance: each task chooses the samples of the other (Zhang et al., ACCV 2020, arXiv 2009.14085)."""

from typing import Literal, Self

from pydantic import Field, PositiveInt

from mgdet.assign.base import owned_labels, ranked_labels
from mgdet.assign.criteria import adaptive, amplified, centre_prior, prior_iou, regressed_iou
from mgdet.assign.max_iou import IoUThresholds
from mgdet.assign.ownership import Counts, Criterion
from mgdet.config_base import resolved
from mgdet.errors import ConfigError
from mgdet.structures import Assignment, Labels, Predictions, PriorLayout, Priors, Targets

Direction = Literal["both", "loc_to_cls", "cls_to_loc", "none"]


class MutualGuidance(IoUThresholds):
    """Positives of classification by IoU_regressed, positives of localization by IoU_amplified.

    For object i and anchor j, with p the score that anchor j now gives to the class of i:

    - *Localize to Classify*: anchors ranked by IoU_regressed, the overlap of the box now predicted with the object.
    - *Classify to Localize*: anchors ranked by IoU_amplified = IoU_anchor ^ ((sigma - p) / sigma) (`power`, the
      paper's), or min(1, IoU_anchor * exp(p / sigma)) (`exponential`, the authors' code since November 2021).

    A point has no IoU_anchor: there (`prior: centre`) the authors' later code puts how central the point is, on levels
    of fitting size, see `centre_prior`.

    How many (`count`):

    - `iou`: as many as the plain anchor IoU gives to that object (Np from `positive_iou`, and as ignored in
      classification the next up to Ni from `negative_iou`), so only *which* anchors learn changes. The paper's.
    - `dynamic_k`: for each task max(1, floor(sum of its `top_k` largest qualities)), none ignored (the authors' code
      since October 2021). The rule for points.
    - `mean_std`: the authors' ATSS-MG: of the `candidates` nearest locations on each level those whose quality, each
      task's own, is at least mean + standard deviation.

    Deviations from the official code: docs/papers/mutual_guidance.md.
    """

    name: Literal["mutual_guidance"] = "mutual_guidance"
    sigma: float = Field(default=2.0, ge=1, description="the larger, the less the score amplifies an anchor's IoU")
    amplify: Literal["power", "exponential"] = Field(
        default="power", description="form in which a score amplifies an anchor's IoU"
    )
    prior: Literal["auto", "iou", "centre"] = Field(
        default="auto", description="what is amplified; auto: centre for points (not with mean_std), else iou"
    )
    count: Literal["auto", "iou", "dynamic_k", "mean_std"] = Field(
        default="auto", description="auto: iou for anchors, dynamic_k for points"
    )
    top_k: PositiveInt | Literal["auto"] = Field(
        default="auto", description="qualities summed by count=dynamic_k; auto: 15, or 5 with one prior per location"
    )
    candidates: int = Field(default=9, ge=1, description="locations on each level that count=mean_std looks at")
    base_scale: float = Field(default=3.0, gt=0, description="strides; object size that prior=centre makes a level for")
    direction: Direction = Field(
        default="both", description="which task is guided by the other; `none`: the same count without predictions"
    )

    def resolved_for(self, layout: PriorLayout) -> Self:
        """`prior`, `count` and `top_k` as numbers and names; refuses to count points by their IoU."""
        count = self.count
        if count == "auto":
            count = "dynamic_k" if layout.points else "iou"
        if count == "iou" and layout.points:
            raise ConfigError(
                "assigner mutual_guidance with count=iou counts anchors by their IoU, and FCOS's points have no size; "
                "use assigner.count=dynamic_k or mean_std (or auto), or model.name=retinanet"
            )
        prior = self.prior
        if prior == "auto":
            prior = "centre" if layout.points and count == "dynamic_k" else "iou"
        return self.model_copy(update={"count": count, "prior": prior, "top_k": resolved_top_k(self.top_k, layout)})

    def assign(self, priors: Priors, predictions: Predictions, targets: Targets) -> Assignment:
        """Labels of the two tasks, independent of each other: a prior may be positive for one of them only."""
        prior = prior_iou(priors) if self.prior == "iou" else centre_prior(priors, self.base_scale)
        counts = self._counts(priors, targets)
        cls = loc = None
        if self.direction != "both":
            cls = loc = self._unguided(prior, counts, priors, targets)
        if self.direction in ("both", "loc_to_cls"):
            cls = self._labels(regressed_iou(predictions), counts, priors, targets, ignore=True)
        if self.direction in ("both", "cls_to_loc"):
            raised = amplified(prior, predictions, self.sigma, self.amplify)
            loc = self._labels(raised, counts, priors, targets)
        assert cls is not None
        assert loc is not None
        return Assignment(cls, loc)

    def _counts(self, priors: Priors, targets: Targets) -> Counts | None:
        """Np and Ni, where they are fixed by the anchor IoU."""
        if self.count != "iou":
            return None
        return self.threshold_counts(self.anchor_owners(priors, targets), targets.boxes.shape[1])

    def _labels(
        self, criterion: Criterion, counts: Counts | None, priors: Priors, targets: Targets, ignore: bool = False
    ) -> Labels:
        if self.count == "mean_std":
            return owned_labels(self.find_owners(adaptive(criterion, priors, self.candidates), priors, targets))
        owners = self.find_owners(criterion, priors, targets, force=True, enough=self.positive_iou)
        if counts is None:
            counts = owners.dynamic_counts(resolved(self.top_k), targets.boxes.shape[1])
        return ranked_labels(owners, counts, ignore)

    def _unguided(self, prior: Criterion, counts: Counts | None, priors: Priors, targets: Targets) -> Labels:
        """The labels of a task that the other one does not guide."""
        if self.count == "mean_std" or priors.layout.points:
            return self._labels(prior, counts, priors, targets)
        return self.threshold_labels(self.anchor_owners(priors, targets))


def resolved_top_k(top_k: int | Literal["auto"], layout: PriorLayout) -> int:
    """Qualities that a dynamic k sums: the authors' 15 with several priors per location, 5 with one."""
    if top_k != "auto":
        return top_k
    return 15 if layout.per_location > 1 else 5
