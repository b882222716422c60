"""Priors over regions that are to be ignored take no part in training: one rule after every assigner."""

import torch
from torch import Tensor

from mgdet.boxes import is_degenerate
from mgdet.structures import IGNORED, NEGATIVE, Assignment, Labels, Priors


def ignore_regions(assignment: Assignment, priors: Priors, regions: Tensor, overlap: float) -> Assignment:
    """The assignment in which background priors over a region are `IGNORED` for both tasks.

    A crowd region holds objects that are not annotated one by one: as background it would teach that there are none.
    A prior lies over a region where their intersection has at least the share `overlap` of the prior's own area. For a
    point the prior is the square of one stride around it. Positives stay what they are.

    Args:
        assignment: labels of `B` images and `A` priors.
        priors: the same for all images.
        regions: `[B, R, 4]` xyxy in pixels of the network's input, padded with boxes without area.
        overlap: share of the prior's area, above 0; above 1 no prior is ignored.
    """
    if not regions.shape[1] or overlap > 1:
        return assignment
    covered = _covered(priors.boxes, regions, overlap)
    cls = _without(assignment.cls, covered)
    return Assignment(cls, cls if assignment.loc is assignment.cls else _without(assignment.loc, covered))


def _covered(boxes: Tensor, regions: Tensor, overlap: float) -> Tensor:
    """Which priors `[B, A]` lie over a region of their image; one region of each image at a time bounds the memory."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=-1)
    covered = torch.zeros(len(regions), len(boxes), dtype=torch.bool, device=boxes.device)
    for region in regions.unbind(dim=1):
        low = torch.maximum(boxes[:, :2], region[:, None, :2])
        high = torch.minimum(boxes[:, 2:], region[:, None, 2:])
        shared = (high - low).clamp(min=0).prod(dim=-1)
        covered |= (shared >= overlap * area) & ~is_degenerate(region)[:, None]
    return covered


def _without(labels: Labels, covered: Tensor) -> Labels:
    gt_index = torch.where(covered & (labels.gt_index == NEGATIVE), IGNORED, labels.gt_index)
    return labels.replace(gt_index=gt_index)
