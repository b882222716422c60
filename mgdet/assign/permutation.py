"""The control of all comparisons: as many positives as another assigner gives, drawn by lot."""

from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from mgdet.assign.atss import ATSS
from mgdet.assign.base import Assigner, ranked_labels
from mgdet.assign.center_sampling import CenterSampling
from mgdet.assign.criteria import prior_iou
from mgdet.assign.geometry import Sides
from mgdet.assign.max_iou import MaxIoU
from mgdet.assign.mutual_guidance import MutualGuidance
from mgdet.assign.mutual_labeling import MutualLabeling
from mgdet.assign.ownership import Counts
from mgdet.assign.pieces import Criterion
from mgdet.assign.places import At
from mgdet.assign.simota import SimOTA
from mgdet.assign.task_aligned import TaskAligned
from mgdet.structures import IGNORED, NEGATIVE, Assignment, Labels, Predictions, PriorLayout, Targets

METHODS: dict[str, type[Assigner]] = {
    "max_iou": MaxIoU,
    "center_sampling": CenterSampling,
    "atss": ATSS,
    "task_aligned": TaskAligned,
    "simota": SimOTA,
    "mutual_guidance": MutualGuidance,
    "mutual_labeling": MutualLabeling,
}


class Permutation(Assigner):
    """Each object gets as many positives as assigner `of` gives it, drawn from the priors that overlap it.

    If the choice of *which* priors learn matters, this must be worse than `of`; what is left of a gain comes from how
    many there are. The lot of a prior and an object is a hash of the object's box and class, the prior's index, `seed`,
    and with `redraw: step` of the image's logits: it is the same in every process and after a resumption, and
    another one at each step. Where `of` has one set of labels for both tasks this has too, otherwise it draws twice.
    What `of` ignores stays ignored unless it is drawn. Objects that overlap take priors from each other, so that they
    may get fewer. mgdet's own control, from no paper.
    """

    name: Literal["permutation"] = "permutation"
    of: Literal[
        "auto",
        "max_iou",
        "center_sampling",
        "atss",
        "task_aligned",
        "simota",
        "mutual_guidance",
        "mutual_labeling",
    ] = Field(
        default="auto",
        description="whose numbers of positives, with its default settings; auto: the detector's baseline, max_iou or "
        "center_sampling",
    )
    redraw: Literal["step", "never"] = Field(
        default="step", description="how long a lot is kept: for one step, or for the whole training"
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="of the lots")
    floor: float = Field(default=0.0, ge=0, lt=1, description="anchor IoU above which a prior may be drawn")

    def other(self, layout: PriorLayout) -> Assigner:
        """The assigner whose numbers these are, without any `auto`."""
        name = self.of
        if name == "auto":
            name = "center_sampling" if layout.points else "max_iou"
        return METHODS[name](adopt=self.adopt, chunk_elements=self.chunk_elements).resolved_for(layout)

    def resolved_for(self, layout: PriorLayout) -> Self:
        """`of` as a name; refuses what that method refuses."""
        return self.model_copy(update={"of": self.other(layout).model_dump()["name"]})

    def at(self, epoch: float, layout: PriorLayout) -> Assigner:
        """The numbers of the assigner that is in force with `of`."""
        return self.model_copy(update={"of": self.other(layout).at(epoch, layout).model_dump()["name"]})

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Labels of the two tasks, as many as the other assigner's."""
        found = self.other(predictions.priors.layout).assign(predictions, targets)
        cls = self._drawn(found.cls, 0, predictions, targets)
        return Assignment(cls, cls if found.loc is found.cls else self._drawn(found.loc, 1, predictions, targets))

    def _drawn(self, labels: Labels, task: int, predictions: Predictions, targets: Targets) -> Labels:
        owners = self.find_owners(self._lots(task, predictions), predictions.priors, targets)
        positive = labels.gt_index >= 0
        count = torch.zeros_like(targets.labels)
        if targets.labels.shape[1]:
            count = count.scatter_add(1, labels.gt_index.clamp(min=0), positive.long())
        drawn = ranked_labels(owners, Counts(count, count))
        ignored = (drawn.gt_index == NEGATIVE) & (labels.gt_index == IGNORED)
        return drawn.replace(gt_index=torch.where(ignored, IGNORED, drawn.gt_index))

    def _lots(self, task: int, predictions: Predictions) -> Criterion:
        priors = predictions.priors
        overlap = prior_iou(priors)
        image = _hashed(torch.full_like(predictions.logits[:, 0, 0], 2 * self.seed + task, dtype=torch.int64))
        if self.redraw == "step":
            image = _hashed(image ^ _bits(predictions.logits[..., 0]).sum(dim=1))
        index = _hashed(torch.arange(len(priors.boxes), device=image.device))

        def quality(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
            key = image[:, None] ^ labels
            for side in _bits(boxes).unbind(-1):
                key = _hashed(key ^ side)
            lot = _hashed(key.unsqueeze(-1) ^ index[at])
            allowed = overlap.quality(boxes, labels, at) > self.floor
            if priors.layout.points:
                allowed &= Sides.of(boxes, priors.take(at)).nearest() > 0
            return torch.where(allowed, ((lot >> 40 & 0xFFFFFF) + 1) / 2**24, 0.0)

        return Criterion(quality, overlap.reach)


def _bits(values: Tensor) -> Tensor:
    """float32 numbers as the integers that are stored, int64; -0 as 0."""
    return (values + 0.0).contiguous().view(torch.int32).long()


def _hashed(values: Tensor) -> Tensor:
    """A hash of 64-bit integers (SplitMix64's last steps, Steele et al., OOPSLA 2014), equal on every device."""
    values = values + 0x1E3779B97F4A7C15
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        values = (values ^ (values >> shift & (1 << 64 - shift) - 1)) * factor
    return values ^ (values >> 31 & (1 << 33) - 1)
