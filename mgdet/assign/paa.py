"""Probabilistic anchor assignment (Kim and Lee, ECCV 2020, arXiv 2007.08103)."""

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from mgdet.assign.base import Assigner, owned_labels
from mgdet.assign.criteria import defined_giou, focal_absent, focal_present, over_classes, own_pairs, prior_iou
from mgdet.assign.ownership import Ownership
from mgdet.assign.places import known_empty, put, where_set
from mgdet.structures import Assignment, Predictions, Priors, Targets

STEPS, TOLERANCE, SPREAD = 100, 1e-3, 1e-6
"""Of expectation-maximisation: steps at most, change of the mean log-likelihood at which it ends, added variance."""


class PAA(Assigner):
    """An object's candidates are split by their losses into two normal distributions; the better part is positive.

    Candidates are the priors with an anchor IoU from `candidate_iou` and each object's best ones; each belongs to the
    object that it overlaps most. Of them the `top_k` with the smallest loss on each level, focal loss + `box_weight` *
    GIoU loss, are given to a mixture of two normal distributions (section 3.2 of the paper, equations 4 to 6). Positive
    are those of the distribution with the smaller losses, up to its most likely one (the paper's figure 3 c);
    everything else is background. Scheme and numbers are MMDetection's `paa_head.py` (verified), which fits with
    scikit-learn; what is computed here is the same mixture from the same start.
    """

    name: Literal["paa"] = "paa"
    candidate_iou: float = Field(default=0.1, ge=0, le=1, description="anchor IoU from which a prior is a candidate")
    top_k: int = Field(default=9, ge=1, le=1000, description="candidates of each object on each level")
    box_weight: float = Field(default=1.3, ge=0, le=1e6, description="factor of the GIoU loss beside the focal loss")

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Both tasks get the same labels."""
        priors, overlap = predictions.priors, prior_iou(predictions.priors)
        owners = self.find_owners(overlap, priors, targets, force="ties", adopt=False)
        if targets.boxes.shape[1]:
            candidate = (owners.owner >= 0) & (owners.quality >= self.candidate_iou)
            loss = self._loss(owners.owner, candidate, predictions, targets)
            positive = self._better_part(owners, candidate, loss, priors, targets.boxes.shape[1])
            owner = torch.where(positive, owners.owner, -1)
            owners = self.owned_by(owner, 1 / (1 + loss), overlap, priors, targets)
        labels = owned_labels(owners)
        return Assignment(labels, labels)

    def _loss(self, owner: Tensor, candidate: Tensor, predictions: Predictions, targets: Targets) -> Tensor:
        """What each candidate costs its owner, `[B, A]` float32; 0 elsewhere."""
        boxes, label = own_pairs(targets, owner)
        at, logits = where_set(candidate), predictions.logits
        absent = torch.zeros(owner.shape, dtype=torch.float64, device=owner.device)
        put(absent, at, over_classes(focal_absent, logits, at).double())
        own = logits.gather(2, label[..., None]).squeeze(2)
        fit = defined_giou(predictions.boxes, boxes)
        loss = absent - focal_absent(own) + focal_present(own) + self.box_weight * (1 - fit)
        return torch.where(candidate, loss, 0.0).float()

    def _better_part(self, owners: Ownership, candidate: Tensor, loss: Tensor, priors: Priors, objects: int) -> Tensor:
        """Which candidates are positive, `[B, A]` bool."""
        levels = len(priors.level_counts)
        counts = [torch.full((n,), i, device=loss.device) for i, n in enumerate(priors.level_counts)]
        group = torch.where(candidate, owners.owner * levels + torch.cat(counts), -1)
        place = owners.rank_in(group, objects * levels, -loss)
        chosen = candidate & (place < self.top_k)
        size = objects * levels * self.top_k
        slot = torch.where(chosen, group * self.top_k + place, size)  # the last one is thrown away
        table = torch.full((len(loss), size + 1), torch.inf, device=loss.device).scatter(1, slot, loss)
        bound = better_part(table[:, :size].reshape(len(loss), objects, -1).double())
        return chosen & (loss <= bound.gather(1, owners.owner.clamp(min=0)))


class Mixture(NamedTuple):
    """Two normal distributions for each object, `[2, B, G]` each."""

    weight: Tensor
    mean: Tensor
    variance: Tensor

    def log_likelihood(self, values: Tensor) -> Tensor:
        """Of values `[B, G, n]` in each distribution, with its weight, `[2, B, G, n]`."""
        weight, mean, variance = (each.unsqueeze(-1) for each in self)
        return weight.log() - 0.5 * (math.log(2 * math.pi) + variance.log() + (values - mean) ** 2 / variance)


def better_part(losses: Tensor) -> Tensor:
    """The largest loss that is positive, `[B, G]`, of losses `[B, G, n]` float64, infinite where there is none.

    Expectation-maximisation begins with the means at the smallest and the largest loss, equal weights and variances of
    1, as in the authors' use of scikit-learn's `GaussianMixture` with its settings. -inf where fewer than two are
    there, or none belongs to the first distribution.
    """
    valid = torch.isfinite(losses)
    values, count = torch.where(valid, losses, 0.0), valid.sum(dim=-1)
    first, last = losses.amin(dim=-1), torch.where(valid, losses, -torch.inf).amax(dim=-1)
    enough = count >= 2
    ends = torch.stack([torch.where(enough, end, 0.0) for end in (first, last)])
    mixture = Mixture(torch.full_like(ends, 0.5), ends, torch.ones_like(ends))
    before, going = torch.full_like(first, -torch.inf), enough
    for _ in range(STEPS):
        if known_empty(going):
            break
        likelihood = mixture.log_likelihood(values)
        total = likelihood.logsumexp(dim=0)
        share = torch.where(valid, (likelihood - total).exp(), 0.0)
        fitted = _fitted(share, values, count)
        mixture = Mixture(*(torch.where(going, new, old) for new, old in zip(fitted, mixture, strict=True)))
        mean = torch.where(valid, total, 0.0).sum(dim=-1) / count.clamp(min=1)
        going = going & ~((mean - before).abs() < TOLERANCE)
        before = mean
    likelihood = mixture.log_likelihood(values)
    foreground = valid & (likelihood[0] >= likelihood[1])
    density = torch.where(foreground, likelihood.logsumexp(dim=0), -torch.inf)
    most_likely = foreground & (density == density.amax(dim=-1, keepdim=True))
    bound = torch.where(most_likely, losses, torch.inf).amin(dim=-1)
    return torch.where(enough & foreground.any(dim=-1), bound, -torch.inf)


def _fitted(share: Tensor, values: Tensor, count: Tensor) -> Mixture:
    """The distributions of which values `[B, G, n]` belong by these shares, `[2, B, G, n]`."""
    size = share.sum(dim=-1) + 10 * torch.finfo(torch.float64).eps
    mean = (share * values).sum(dim=-1) / size
    variance = (share * values**2).sum(dim=-1) / size - mean**2 + SPREAD
    return Mixture(size / count.clamp(min=1), mean, variance)
