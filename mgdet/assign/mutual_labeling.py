"""Mutual labeling: the two tasks label each other's samples (after Zhang et al., ICME 2021, arXiv 2103.08958).

Of the paper only the abstract could be had. What is here is a reconstruction from it, from Mutual Guidance and ATSS-MG
and from Mutual Supervision (Gao et al., ICCV 2021); docs/papers/harmonized.md gives the source of each part. Every
choice is a switch.
"""

from typing import Literal

from pydantic import Field

from mgdet.assign.base import Assigner
from mgdet.assign.center_sampling import CenterSampling, CentreRegion
from mgdet.assign.criteria import (
    amplified,
    centerness,
    class_score,
    prior_iou,
    product,
    regressed_iou,
    remembered,
    within,
)
from mgdet.assign.max_iou import MaxIoU
from mgdet.assign.mutual import Criteria, MutualAssigner
from mgdet.assign.ownership import Counts
from mgdet.assign.pieces import Criterion
from mgdet.structures import Assignment, Predictions, PriorLayout, Priors, Targets


class MutualLabeling(MutualAssigner, CentreRegion):
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
    count: Literal["baseline", "mean_std", "dynamic_k"] = Field(
        default="baseline",
        description="what decides how many positives an object gets; baseline: the detector's own rule",
    )
    criterion: Literal["score", "amplified", "regularised"] = Field(
        default="regularised", description="by what the other task ranks the candidates of an object"
    )
    sigma: float = Field(
        default=2.0, ge=1, le=1e30, description="of `amplified`: the larger, the less the score counts"
    )
    alpha: float = Field(default=1 / 3, ge=0, le=1, description="of `regularised`: power of the task's own quality")
    theta: float = Field(
        default=4.0, ge=0.001, le=1000, description="of `regularised`: power that brings an IoU to a score's scale"
    )
    region: Literal["box", "centre"] = Field(
        default="box", description="of points: anywhere in the object, or within `radius` strides of its centre"
    )
    warmup_epochs: float = Field(default=0.0, ge=0, le=1e9, description="epochs with the baseline's labels before")

    def baseline(self, layout: PriorLayout) -> MaxIoU | CenterSampling:
        """The detector's own assigner."""
        own: type[CenterSampling] | type[MaxIoU] = CenterSampling if layout.points else MaxIoU
        return own(**self.model_dump(include=own.model_fields.keys() - {"name"}))

    def at(self, epoch: float, layout: PriorLayout) -> Assigner:
        """The baseline while `epoch < warmup_epochs`."""
        return self.baseline(layout) if epoch < self.warmup_epochs else self

    def criteria(self, predictions: Predictions) -> Criteria:
        """What ranks the priors for classification and what for localization, both 0 outside Omega."""
        priors = predictions.priors
        points = priors.layout.points
        region = self.centre_region(priors, self.radius if self.region == "centre" else None)
        overlap = None if points else remembered(prior_iou(priors))
        omega = overlap or region
        u, p = regressed_iou(predictions), class_score(predictions)
        cls = u
        if self.criterion == "score":
            loc = p
        elif self.criterion == "amplified":
            loc = amplified(overlap or centerness(priors), predictions, self.sigma)
        else:
            cls = product(u, p, (self.theta, self.alpha), predictions.logits)
            loc = product(p, u, (1.0, self.theta * self.alpha), predictions.logits)
        return Criteria(within(cls, omega), within(loc, omega), overlap)

    def counts(self, priors: Priors, targets: Targets, overlap: Criterion | None) -> Counts | None:
        """How many the baseline gives to each object, for `count: baseline`."""
        num_objects = targets.boxes.shape[1]
        if self.count != "baseline":
            return None
        if not priors.layout.points:
            return self.threshold_counts(self.anchor_owners(priors, targets, overlap=overlap), num_objects)
        owners = self.centre_owners(priors, targets)
        count = owners.count_owned(owners.owner >= 0, num_objects)
        return Counts(count, count)

    def unguided(self, predictions: Predictions, targets: Targets, counts: Counts | None) -> Assignment:
        """The baseline's labels."""
        return self.baseline(predictions.priors.layout).assign(predictions, targets)

    def enough(self, priors: Priors) -> float:
        """`positive_iou` where the baseline counts anchors by it; any quality elsewhere."""
        return self.positive_iou if self.count == "baseline" and not priors.layout.points else 0.0
