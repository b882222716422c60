"""Mutual labeling: the two tasks label each other's samples (after Zhang et al., ICME 2021, arXiv 2103.08958).

Of the paper only the abstract could be had. What is here is a reconstruction from it, from Mutual Guidance and ATSS-MG
and from Mutual Supervision (Gao et al., ICCV 2021); docs/papers/harmonized.md gives the source of each part. Every
choice is a switch.
"""

from typing import Literal, Self

from pydantic import Field, PositiveInt

from mgdet.assign.base import Assigner, owned_labels, ranked_labels
from mgdet.assign.center_sampling import CenterSampling, CentreRegion
from mgdet.assign.criteria import (
    adaptive,
    amplified,
    centerness,
    class_score,
    prior_iou,
    product,
    regressed_iou,
    within,
)
from mgdet.assign.max_iou import IoUThresholds, MaxIoU
from mgdet.assign.mutual_guidance import Direction, resolved_top_k
from mgdet.assign.ownership import Counts, Criterion
from mgdet.config_base import resolved
from mgdet.structures import Assignment, Labels, Predictions, PriorLayout, Priors, Targets


class MutualLabeling(IoUThresholds, CentreRegion):
    """Positives of classification by how well priors localize, positives of localization by how well they classify.

    With p the score of the object's class, u the IoU of the predicted box and a the static quality of the prior (anchor
    IoU; for points FCOS's centre-ness), priors of an object's region Omega are ranked

    - for classification by u (`regularised`: u^theta * p^alpha),
    - for localization by (`criterion`) `score`: p; `amplified`: a ^ ((sigma - p) / sigma); `regularised`:
      p * (u^theta)^alpha, Mutual Supervision's pair, which regularises each task's choice by its own quality.

    Omega is where the anchor overlaps the object; for points the object's box (or the centre region) on the level of
    its size. `count`: `baseline`, as many as the detector's own baseline gives to that object (max_iou or
    center_sampling; with the ignored ones of max_iou in classification); `mean_std`, ATSS's rule on each task's own
    quality; `dynamic_k`, max(1, floor(sum of the `top_k` best)). While `warmup_epochs` last the baseline labels.
    """

    name: Literal["mutual_labeling"] = "mutual_labeling"
    direction: Direction = Field(default="both", description="which task is labelled by the other")
    count: Literal["baseline", "mean_std", "dynamic_k"] = Field(
        default="baseline",
        description="what decides how many positives an object gets; baseline: the detector's own rule",
    )
    criterion: Literal["score", "amplified", "regularised"] = Field(
        default="regularised", description="by what the other task ranks the candidates of an object"
    )
    sigma: float = Field(default=2.0, ge=1, description="of `amplified`: the larger, the less the score counts")
    alpha: float = Field(default=1 / 3, ge=0, le=1, description="of `regularised`: power of the task's own quality")
    theta: float = Field(default=4.0, gt=0, description="of `regularised`: power that brings an IoU to a score's scale")
    top_k: PositiveInt | Literal["auto"] = Field(
        default="auto", description="qualities summed by count=dynamic_k; auto: 15, or 5 with one prior per location"
    )
    candidates: int = Field(default=9, ge=1, description="locations on each level that count=mean_std looks at")
    region: Literal["box", "centre"] = Field(
        default="box", description="of points: anywhere in the object, or within `radius` strides of its centre"
    )
    warmup_epochs: float = Field(default=0.0, ge=0, description="epochs with the baseline's labels before")

    def resolved_for(self, layout: PriorLayout) -> Self:
        """`top_k` as a number."""
        return self.model_copy(update={"top_k": resolved_top_k(self.top_k, layout)})

    def baseline(self, layout: PriorLayout) -> MaxIoU | CenterSampling:
        """The detector's own assigner."""
        if layout.points:
            return CenterSampling(
                radius=self.radius, regress_range=self.regress_range, chunk_elements=self.chunk_elements
            )
        return MaxIoU(
            positive_iou=self.positive_iou, negative_iou=self.negative_iou, chunk_elements=self.chunk_elements
        )

    def at(self, epoch: float, layout: PriorLayout) -> Assigner:
        """The baseline while `epoch < warmup_epochs`."""
        return self.baseline(layout) if epoch < self.warmup_epochs else self

    def assign(self, priors: Priors, predictions: Predictions, targets: Targets) -> Assignment:
        """Labels of the two tasks, independent of each other: a prior may be positive for one of them only."""
        cls = loc = None
        if self.direction != "both":
            cls, loc = self.baseline(priors.layout).assign(priors, predictions, targets)
        counts = self._counts(priors, targets)
        by_localization, by_classification = self._criteria(priors, predictions)
        if self.direction in ("both", "loc_to_cls"):
            cls = self._labels(by_localization, counts, priors, targets, ignore=True)
        if self.direction in ("both", "cls_to_loc"):
            loc = self._labels(by_classification, counts, priors, targets)
        assert cls is not None
        assert loc is not None
        return Assignment(cls, loc)

    def _counts(self, priors: Priors, targets: Targets) -> Counts | None:
        """How many the baseline gives to each object, where that counts."""
        num_objects = targets.boxes.shape[1]
        if self.count != "baseline":
            return None
        if not priors.layout.points:
            return self.threshold_counts(self.anchor_owners(priors, targets), num_objects)
        owners = self.centre_owners(priors, targets)
        count = owners.count_owned(owners.owner >= 0, num_objects)
        return Counts(count, count)

    def _criteria(self, priors: Priors, predictions: Predictions) -> tuple[Criterion, Criterion]:
        """What labels classification, and what labels localization, both 0 outside Omega."""
        points = priors.layout.points
        region = self.centre_region(priors, self.radius if self.region == "centre" else None)
        omega = region if points else prior_iou(priors)
        u, p = regressed_iou(predictions), class_score(predictions)
        cls = u
        if self.criterion == "score":
            loc = p
        elif self.criterion == "amplified":
            loc = amplified(centerness(priors) if points else prior_iou(priors), predictions, self.sigma)
        else:
            cls = product(u, p, (self.theta, self.alpha), predictions.logits)
            loc = product(p, u, (1.0, self.theta * self.alpha), predictions.logits)
        return within(cls, omega), within(loc, omega)

    def _labels(
        self, criterion: Criterion, counts: Counts | None, priors: Priors, targets: Targets, ignore: bool = False
    ) -> Labels:
        if self.count == "mean_std":
            return owned_labels(self.find_owners(adaptive(criterion, priors, self.candidates), priors, targets))
        thresholds = self.count == "baseline" and not priors.layout.points
        enough = self.positive_iou if thresholds else 0.0
        owners = self.find_owners(criterion, priors, targets, force=True, enough=enough)
        if counts is None:
            counts = owners.dynamic_counts(resolved(self.top_k), targets.boxes.shape[1])
        return ranked_labels(owners, counts, ignore)
