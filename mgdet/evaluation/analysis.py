"""What is said of the detections of a split beside their AP: errors by type, calibration, groups of objects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.evaluation.calibration import Calibration, calibration, confusion
from mgdet.evaluation.error_types import (
    ERROR_TYPES,
    FOUND_IOU,
    NEAR_IOU,
    OF_DETECTIONS,
    ErrorTypes,
    error_costs,
    error_rankings,
    error_types,
)
from mgdet.evaluation.matching import Bools, Ints, Matches, OperatingPoint, match, operating_points, overlaps
from mgdet.evaluation.ranking import SIZES
from mgdet.evaluation.strata import Stratum, by_crowdedness, by_positives, strata
from mgdet.ground_truth import GroundTruth
from mgdet.structures import unique_names


class ImageErrors(NamedTuple):
    """What is wrong in each of `N` images, of the detections that one would show: from the best F1's score on."""

    wrong: Ints  # [N] detections that found no object
    missed: Ints  # [N] objects that no detection found

    def worst(self) -> Ints:
        """Rows of the images with an error, the most errors first."""
        total = self.wrong + self.missed
        order = np.argsort(-total, kind="stable")
        return order[total[order] > 0]


@dataclass(frozen=True)
class Analysis:
    """What is said of `D` detections of a split, at an IoU of 0.5 where nothing else is said."""

    matches: Matches  # [D]
    points: dict[str, OperatingPoint]  # best F1 of each class by its name
    shown: Bools  # [D] detections from that score on
    errors: ErrorTypes
    costs: dict[str, float]  # rise of AP50 by type of error; empty where AP is undefined
    calibration: Calibration
    confusion: Ints  # [K + 1, K + 1], of the detections that are shown
    groups: dict[str, list[Stratum]]  # by what the objects are told apart
    images: ImageErrors

    def counts(self) -> dict[str, int]:
        """How many errors there are of each type."""
        of_detections = {name: int((self.errors.type == i).sum()) for i, name in enumerate(OF_DETECTIONS)}
        return {**of_detections, ERROR_TYPES[-1]: len(self.errors.missed)}

    def as_json(self, gt: GroundTruth) -> dict[str, Any]:
        """Plain values; what is undefined is null."""
        order = self.images.worst().tolist()
        return {
            "errors": {name: {"count": n, "ap50_lost": self.costs.get(name)} for name, n in self.counts().items()},
            "calibration": self.calibration.as_json(),
            "confusion": {
                "rows are objects, columns detections": [*unique_names(gt.categories), "none"],
                "matrix": self.confusion.tolist(),
            },
            "groups": {title: [each._asdict() for each in found] for title, found in self.groups.items()},
            "worst_images": [
                {
                    "image_id": int(gt.image_ids[row]),
                    "wrong": int(self.images.wrong[row]),
                    "missed": int(self.images.missed[row]),
                }
                for row in order
            ],
        }


def analyse(
    gt: GroundTruth,
    det: DetectionArrays,
    max_dets: int = 100,
    positives: Mapping[str, Ints] | None = None,
) -> Analysis:
    """Analyse the detections of a split.

    Args:
        gt: `M` objects.
        det: `D` detections.
        max_dets: best detections of an image and class that count.
        positives: of each task, how many priors `[M]` learn it from each object.
    """
    near = overlaps(gt, det, NEAR_IOU, same_class=False)
    same = det.labels[near.detection] == gt.labels[near.object]
    reached = same & (near.iou >= FOUND_IOU)
    found = near.take(reached)
    matches = Matches(*(part[0] for part in match(gt, det, found, np.array([FOUND_IOU]), max_dets=max_dets)))
    points = operating_points(gt, det, matches)
    least = np.array([np.inf if point.score is None else point.score for point in points.values()])
    shown = ~matches.ignored & (det.scores.astype(np.float64) >= least[det.labels]) if len(least) else matches.right
    errors = error_types(gt, det, near, matches)
    costs = error_costs(error_rankings(gt, det, errors), np.ones((1, len(gt.image_ids))))
    groups: dict[str, dict[str, Bools]] = {"size": _by_size(gt), "crowdedness": by_crowdedness(gt)}
    for task, count in (positives or {}).items():
        groups[f"positives of {task}"] = by_positives(count)
    return Analysis(
        matches,
        points,
        shown,
        errors,
        {} if np.isnan(costs.ap[0]) else dict(zip(ERROR_TYPES, costs.rise[0].tolist(), strict=True)),
        calibration(det, matches),
        confusion(gt, det, shown),
        {title: strata(gt, det, found, chosen, max_dets) for title, chosen in groups.items()},
        _image_errors(gt, det, matches, shown),
    )


def _by_size(gt: GroundTruth) -> dict[str, Bools]:
    names = ("below 32 x 32 px", "32 x 32 to 96 x 96 px", "above 96 x 96 px")
    return {name: (gt.area >= low) & (gt.area <= high) for name, (low, high) in zip(names, SIZES.values(), strict=True)}


def _image_errors(gt: GroundTruth, det: DetectionArrays, matches: Matches, shown: Bools) -> ImageErrors:
    images = len(gt.image_ids)
    lost = ~gt.iscrowd
    lost[matches.object[matches.right & shown]] = False
    wrong = np.bincount(det.image[shown & ~matches.right], minlength=images)
    return ImageErrors(wrong, np.bincount(gt.box_image[lost], minlength=images))
