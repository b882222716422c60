"""What every assigner is: a frozen set of hyperparameters that can be called."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from mgdet.assign.ownership import Counts, Force, Ownership, count_claims, find_owners, owned_by
from mgdet.assign.pieces import Criterion
from mgdet.assign.places import host_may_look, is_small
from mgdet.config_base import Config
from mgdet.structures import IGNORED, NEGATIVE, Assignment, Labels, Predictions, PriorLayout, Priors, Targets


class Assigner(Config):
    """A pure function from what is predicted now to who learns what, whole batch at once.

    Subclasses add their hyperparameters as fields, so that one class is the YAML node, the search axis and the logged
    parameter at once, and a `name` by which the configuration tells them apart.
    """

    chunk_elements: int = Field(
        default=2**25,
        ge=1,
        le=2**53,
        description="bound on the elements of one intermediate matrix; never changes the result",
    )

    adopt: bool = Field(
        default=True,
        description="an object that is left without a positive adopts a prior; mgdet's own rule, false as published",
    )

    def __call__(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Labels of both tasks for every prior: no gradient, float32, no host synchronisation.

        On a CPU one image at a time, which needs a fraction of the time and memory (docs/results.md). Raises
        `ConfigError` where the method is not defined for such priors.
        """
        method, images = self.resolved_for(predictions.priors.layout), len(predictions.boxes)
        at_once = not host_may_look(predictions.boxes) or is_small(targets.boxes, len(predictions.priors.boxes))
        with torch.no_grad(), torch.autocast(predictions.boxes.device.type, enabled=False):
            if images < 2 or at_once:
                return method.assign(predictions.detach(), targets)
            parts = [slice(image, image + 1) for image in range(images)]
            return joined([method.assign(predictions[part].detach(), targets[part]) for part in parts])

    @abstractmethod
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """The method itself; `predictions` are detached and float32, and no field is `auto`."""

    def resolved_for(self, layout: PriorLayout) -> Self:
        """The same method for a detector with such priors: every `auto` replaced.

        Raises `ConfigError` where the method is not defined for them.
        """
        return self

    def at(self, epoch: float, layout: PriorLayout) -> "Assigner":
        """The assigner that is in force after `epoch` epochs (with a fraction): another one while this warms up."""
        return self

    def find_owners(
        self,
        criterion: Criterion,
        priors: Priors,
        targets: Targets,
        *,
        force: Force = "none",
        adopt: bool = True,
        enough: float = 0.0,
    ) -> Ownership:
        """`mgdet.assign.ownership.find_owners` in this assigner's chunks, with adoption where its key allows it too."""
        return find_owners(
            criterion,
            priors,
            targets,
            chunk_elements=self.chunk_elements,
            force=force,
            adopt=adopt and self.adopt,
            enough=enough,
        )

    def owned_by(
        self, owner: Tensor, value: Tensor, criterion: Criterion, priors: Priors, targets: Targets
    ) -> Ownership:
        """`mgdet.assign.ownership.owned_by` in this assigner's chunks, with adoption where its key allows it."""
        return owned_by(owner, value, criterion, priors, targets, adopt=self.adopt, chunk_elements=self.chunk_elements)

    def count_claims(self, criterion: Criterion, priors: Priors, targets: Targets) -> Tensor:
        """To how many usable objects each prior is worth more than 0, `[B, A]` int64, in this assigner's chunks."""
        return count_claims(criterion, priors, targets, chunk_elements=self.chunk_elements)


def joined(assignments: Sequence[Assignment]) -> Assignment:
    """The assignment of all images, of those of some each."""

    def together(labels: Sequence[Labels]) -> Labels:
        return Labels(torch.cat([each.gt_index for each in labels]), torch.cat([each.weight for each in labels]))

    cls = together([each.cls for each in assignments])
    same = all(each.loc is each.cls for each in assignments)
    return Assignment(cls, cls if same else together([each.loc for each in assignments]))


def hard_labels(owner: Tensor, positive: Tensor, ignored: Tensor | None = None) -> Labels:
    """`Labels` from owners `[B, A]` and masks `[B, A]`: weight 1 for positives, everything else background."""
    gt_index = torch.where(positive, owner, NEGATIVE)
    if ignored is not None:
        gt_index = torch.where(ignored, IGNORED, gt_index)
    return Labels(gt_index, positive.float())


def owned_labels(owners: Ownership) -> Labels:
    """Every prior that has an owner is positive for it."""
    return hard_labels(owners.owner, owners.owner >= 0)


def weighted_labels(owners: Ownership) -> Labels:
    """The same, weighted by the criterion; 1 for what was adopted without being worth anything."""
    labels = owned_labels(owners)
    return labels.replace(weight=torch.where(owners.raw > 0, owners.raw, labels.weight))


def ranked_labels(owners: Ownership, counts: Counts, ignore: bool = False) -> Labels:
    """Each object's best priors are positive, as many as `counts` says; with `ignore` the next ones are ignored."""
    positive = owners.best(counts.positive)
    ignored = owners.best(counts.not_negative) & ~positive if ignore else None
    return hard_labels(owners.owner, positive, ignored)
