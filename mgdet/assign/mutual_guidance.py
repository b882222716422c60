"""Mutual Guidance: each task chooses the samples of the other (Zhang et al., ACCV 2020, arXiv 2009.14085)."""

from typing import Literal, Self

from pydantic import Field

from mgdet.assign.criteria import amplified, centre_prior, prior_iou, regressed_iou, remembered
from mgdet.assign.mutual import Criteria, MutualAssigner
from mgdet.assign.ownership import Counts
from mgdet.assign.pieces import Criterion
from mgdet.errors import ConfigError
from mgdet.structures import Assignment, Predictions, PriorLayout, Priors, Targets


class MutualGuidance(MutualAssigner):
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
    sigma: float = Field(
        default=2.0, ge=1, le=1e30, description="the larger, the less the score amplifies an anchor's IoU"
    )
    amplify: Literal["power", "exponential"] = Field(
        default="power", description="form of IoU_amplified: the paper's power, or the authors' later exponential"
    )
    prior: Literal["auto", "iou", "centre"] = Field(
        default="auto", description="what is amplified; auto: centre for points (not with mean_std), else iou"
    )
    count: Literal["auto", "iou", "dynamic_k", "mean_std"] = Field(
        default="auto", description="how many samples an object gets; auto: iou for anchors, dynamic_k for points"
    )
    base_scale: float = Field(
        default=3.0, gt=0, le=1e6, description="strides; object size that prior=centre makes a level for"
    )

    force_ties: bool = Field(
        default=False,
        description="of anchors that tie as an object's best all count in Np; false as in the paper's code",
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
        return super().resolved_for(layout).model_copy(update={"count": count, "prior": prior})

    def criteria(self, predictions: Predictions) -> Criteria:
        """IoU_regressed and IoU_amplified (section 3 of the paper)."""
        prior = remembered(self._prior(predictions.priors))
        raised = amplified(prior, predictions, self.sigma, self.amplify)
        return Criteria(regressed_iou(predictions), raised, prior if self.prior == "iou" else None)

    def counts(self, priors: Priors, targets: Targets, overlap: Criterion | None) -> Counts | None:
        """Np and Ni of each object by the anchor IoU, for `count: iou`."""
        if self.count != "iou":
            return None
        owners = self.anchor_owners(priors, targets, overlap=overlap)
        return self.threshold_counts(owners, targets.boxes.shape[1])

    def unguided(self, predictions: Predictions, targets: Targets, counts: Counts | None) -> Assignment:
        """By the plain quality of the priors: max_iou's labels for anchors that are not counted by `mean_std`."""
        priors = predictions.priors
        if self.count == "mean_std" or priors.layout.points:
            labels = self.labels(self._prior(priors), priors, targets, counts)
        else:
            labels = self.threshold_labels(self.anchor_owners(priors, targets))
        return Assignment(labels, labels)

    def _prior(self, priors: Priors) -> Criterion:
        return prior_iou(priors) if self.prior == "iou" else centre_prior(priors, self.base_scale)
