"""Average precision of some of the objects: by their size, by how crowded they lie, by how many positives they got."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mgdet.evaluation.average_precision import IOU_THRESHOLDS, DetectionArrays
from mgdet.evaluation.matching import Bools, Ints, Overlaps, match, overlaps
from mgdet.evaluation.ranking import average_precisions, mean_defined, rankings
from mgdet.ground_truth import GroundTruth

CROWDED_IOU = 0.1
"""An object whose IoU with another one is at least this does not stand alone."""


class Stratum(NamedTuple):
    """Some of the objects. What is undefined is None."""

    name: str
    objects: int
    ap: float | None  # mean over COCO's IoUs and the classes
    recall: float | None  # share of the objects that are found, mean over COCO's IoUs


def strata(
    gt: GroundTruth, det: DetectionArrays, found: Overlaps, groups: Mapping[str, Bools], max_dets: int = 100
) -> list[Stratum]:
    """AP and recall of each group of objects `[M]`.

    All other objects are ignored, and so are detections that find one of these. Detections without an object are wrong
    in every group, because nothing says to which they belong: the AP of a small group is therefore low, and groups are
    compared between two detectors rather than with each other. (COCO's AP by size leaves out wrong detections of
    another size.)

    Args:
        gt: `M` objects.
        det: `D` detections.
        found: their overlaps within a class, down to an IoU of 0.5.
        groups: `[M]` each.
        max_dets: best detections of an image and class that count.
    """
    out = []
    everything = np.ones((1, len(gt.image_ids)))
    for name, chosen in groups.items():
        ignored = gt.iscrowd | ~chosen
        matches = match(gt, det, found, IOU_THRESHOLDS, ignored=ignored, max_dets=max_dets)
        objects = int((~ignored).sum())
        ap = float(mean_defined(average_precisions(rankings(gt, det, matches, ignored), everything), axis=(0, 1, 2)))
        recall = float(matches.right.sum(axis=1).mean()) / objects if objects else None
        out.append(Stratum(name, objects, None if np.isnan(ap) else ap, recall))
    return out


def by_crowdedness(gt: GroundTruth) -> dict[str, Bools]:
    """Objects that stand alone, and those that overlap one or several others of any class by `CROWDED_IOU`."""
    neighbours = _neighbours(gt)
    return {
        "alone": neighbours == 0,
        "overlaps 1 object": neighbours == 1,
        "overlaps 2 or more": neighbours >= 2,
    }


def _neighbours(gt: GroundTruth) -> Ints:
    chosen = np.flatnonzero(~gt.iscrowd)
    themselves = DetectionArrays(gt.box_image[chosen], gt.boxes[chosen], np.ones(len(chosen)), gt.labels[chosen])
    pairs = overlaps(gt, themselves, CROWDED_IOU, same_class=False)
    one, other = chosen[pairs.detection], pairs.object
    counts = (one != other) & ~gt.iscrowd[other]
    return np.bincount(one[counts], minlength=len(gt.boxes))


def by_positives(positives: Ints) -> dict[str, Bools]:
    """Objects by the number of priors `[M]` that learn from them."""
    edges = (0, 1, 2, 5, 10, np.inf)
    names = ("none", "1", "2 to 4", "5 to 9", "10 or more")
    return {
        name: (positives >= low) & (positives < high)
        for name, low, high in zip(names, edges[:-1], edges[1:], strict=True)
    }
