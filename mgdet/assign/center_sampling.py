"""The baseline of points: those near the middle of an object, on the level made for its size."""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mgdet.assign.base import Assigner, owned_labels
from mgdet.assign.geometry import Sides, around, in_scale_range, near_centre
from mgdet.assign.ownership import Ownership
from mgdet.assign.pieces import Criterion
from mgdet.assign.places import At
from mgdet.boxes import box_area
from mgdet.errors import ConfigError
from mgdet.structures import Assignment, Predictions, PriorLayout, Priors, Targets

LARGEST_SIDE = 1e6
"""Strides within which `regress_range` must lie."""
LARGEST_AREA = 1e30
"""Square pixels from which objects no longer differ in size; 1 / area must not underflow."""


class CentreRegion(Assigner):
    """Assigners that may take the locations in and around the middle of an object."""

    radius: float | None = Field(
        default=1.5, gt=0, le=1e6, description="strides from the object's centre, in x and y; null: the whole box"
    )
    regress_range: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(le=LARGEST_SIDE)]] = Field(
        default=(4.0, 8.0), description="farthest side of an object from a location of its level, (low, high] strides"
    )

    @model_validator(mode="after")
    def _range_is_one(self) -> Self:
        low, high = self.regress_range
        if not 0 <= low < high <= LARGEST_SIDE:
            raise ValueError(
                f"regress_range must be (low, high) strides with 0 <= low < high <= {LARGEST_SIDE:g}, "
                f"given ({low}, {high})"
            )
        return self

    def centre_region(self, priors: Priors, radius: float | None) -> Criterion:
        """1 / (1 + area) of the object at its locations, 0 elsewhere: where objects compete the smallest one wins."""

        def quality(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
            here = priors.take(at)
            inside = (Sides.of(boxes, here).nearest() > 0) & in_scale_range(boxes, here, *self.regress_range)
            if radius is not None:
                inside &= near_centre(boxes, here, radius)
            area = box_area(boxes).clamp(max=LARGEST_AREA).unsqueeze(-1)
            return torch.where(inside, 1 / (1 + area), 0.0)

        return Criterion(quality, around(priors).touching)

    def centre_owners(self, priors: Priors, targets: Targets) -> Ownership:
        """Who owns each location by FCOS's rule."""
        return self.find_owners(self.centre_region(priors, self.radius), priors, targets)


class CenterSampling(CentreRegion):
    """Locations inside an object, within 1.5 strides of its centre, on the level made for its size are positive.

    FCOS (Tian et al., ICCV 2019, section 3.2: the ranges 64, 128, 256, 512 pixels are 8 strides of each level; where
    objects overlap the smallest one wins) with the centre sampling of its extension (arXiv 2006.09214, section 2.1).
    An object between the locations or the ranges adopts one (`find_owners`); FCOS leaves it out.
    """

    name: Literal["center_sampling"] = "center_sampling"

    def resolved_for(self, layout: PriorLayout) -> Self:
        """Unchanged; refuses several priors at one location."""
        if layout.per_location != 1:
            raise ConfigError(
                f"assigner center_sampling chooses locations, and this detector has {layout}, which it cannot tell "
                "apart; use model.name=fcos, or one anchor (model.anchors.scales=1 model.anchors.ratios=[1.0]), or "
                "assigner.name=atss"
            )
        return self

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Both tasks get the same labels."""
        labels = owned_labels(self.centre_owners(predictions.priors, targets))
        return Assignment(labels, labels)
