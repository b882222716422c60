"""What every assigner is: a frozen set of hyperparameters that can be called."""

from abc import abstractmethod

import torch
from pydantic import Field
from torch import Tensor

from mgdet.config_base import Config
from mgdet.structures import IGNORED, NEGATIVE, Assignment, Labels, Predictions, Priors, Targets


class Assigner(Config):
    """A pure function from what is predicted now to who learns what, whole batch at once.

    Subclasses add their hyperparameters as fields, so that one class is the YAML node, the search axis and the logged
    parameter at once, and a `name` by which the configuration tells them apart.
    """

    chunk_elements: int = Field(
        default=2**25, ge=1, description="bound on the elements of one intermediate matrix; never changes the result"
    )

    def __call__(self, priors: Priors, predictions: Predictions, targets: Targets) -> Assignment:
        """Labels of both tasks for every prior: no gradient, float32, no loop over images, no host synchronisation."""
        with torch.no_grad(), torch.autocast(priors.boxes.device.type, enabled=False):
            return self.assign(priors, predictions.detach(), targets)

    @abstractmethod
    def assign(self, priors: Priors, predictions: Predictions, targets: Targets) -> Assignment:
        """The method itself; `predictions` are detached and float32."""


def hard_labels(owner: Tensor, positive: Tensor, ignored: Tensor | None = None) -> Labels:
    """`Labels` from owners `[B, A]` and masks `[B, A]`: weight 1 for positives, everything else background."""
    gt_index = torch.where(positive, owner, NEGATIVE)
    if ignored is not None:
        gt_index = torch.where(ignored, IGNORED, gt_index)
    return Labels(gt_index, positive.float())
