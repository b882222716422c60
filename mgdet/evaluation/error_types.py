"""Why detections are wrong, and what AP each kind of error costs: TIDE (Bolya et al., ECCV 2020, section 3).

Every wrong detection has one type, and an object that no correction finds is missed. The cost of a type is the rise of
AP at one IoU when all its errors, and no others, are corrected:

- `class`         another class's object lies there (IoU >= 0.5): gets its class
- `location`      an object of its class lies near (0.1 <= IoU <= 0.5): gets its box
- `both`          near an object of another class only: is taken out
- `duplicate`     its object has a better detection already: is taken out
- `background`    no object is near (IoU <= 0.1): is taken out
- `missed`        the object is counted no more

Of several corrections that find the same object, the one of the best score does, and the others are taken out. The
numbers are those of the authors' `tidecv`, but for three things: equal IoUs and scores are resolved as COCO does;
detections in crowds are ignored altogether; and a class without an object has no AP, where `tidecv` counts it as 0,
while one of which nothing at all was found loses all of its AP to missed objects, where `tidecv` leaves it out.
"""

from typing import NamedTuple

import numpy as np

from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.evaluation.matching import Bools, Floats, Ints, Matches, Overlaps
from mgdet.evaluation.ranking import Ranking, average_precisions, mean_defined, ranked
from mgdet.ground_truth import GroundTruth

FOUND_IOU, NEAR_IOU = 0.5, 0.1
"""IoU of a right detection, and the least one with which an object is near."""
ERROR_TYPES = ("class", "location", "both", "duplicate", "background", "missed")
OF_DETECTIONS = ERROR_TYPES[:-1]
NO_ERROR = -1
_CLASS, _LOCATION, _BOTH, _DUPLICATE, _BACKGROUND = range(5)


class ErrorTypes(NamedTuple):
    """The type of each of `D` detections and the fate of each of `M` objects."""

    type: Ints  # [D] position in `OF_DETECTIONS`; -1: right or ignored
    object: Ints  # [D] the object that it found, or that its correction is about; -1: none
    corrects: Ints  # [D] the object that its correction finds; -1: it would only be taken out
    missed: Ints  # [m] objects that neither a detection nor a correction finds
    matches: Matches  # [D] at the IoU of a right detection


def error_types(gt: GroundTruth, det: DetectionArrays, near: Overlaps, matches: Matches) -> ErrorTypes:
    """Sort the errors by type.

    Args:
        gt: `M` objects.
        det: `D` detections.
        near: overlaps of detections with objects of all classes, down to `NEAR_IOU`.
        matches: `[D]` by COCO's rule at `FOUND_IOU`.
    """
    near = near.take(~gt.iscrowd[near.object])
    d, o, iou = near.detection, near.object, near.iou
    same = det.labels[d] == gt.labels[o]
    found = np.zeros(len(gt.boxes), dtype=np.bool_)
    found[matches.object[matches.right]] = True
    best_own, own = _best(len(det.scores), d, o, np.where(same, iou, 0.0))
    best_other, other = _best(len(det.scores), d, o, np.where(~same, iou, 0.0))
    best_found, taken = _best(len(det.scores), d, o, np.where(same & found[o], iou, 0.0))
    nearest = np.maximum(best_own, best_other)
    conditions = (
        (best_own >= NEAR_IOU) & (best_own <= FOUND_IOU),
        best_other >= FOUND_IOU,
        best_found >= FOUND_IOU,
        nearest <= NEAR_IOU,
    )
    kind = np.select(conditions, (_LOCATION, _CLASS, _DUPLICATE, _BACKGROUND), _BOTH)
    about = np.select(conditions[:3], (own, other, taken), -1)
    wrong = ~matches.right & ~matches.ignored
    kind = np.where(wrong, kind, NO_ERROR)
    about = np.where(matches.right, matches.object, np.where(wrong, about, -1))
    corrects = _corrections(gt, det, kind, about, found)
    missed = ~gt.iscrowd & ~found
    missed[corrects[corrects >= 0]] = False
    return ErrorTypes(kind, about, corrects, np.flatnonzero(missed), matches)


def _best(size: int, d: Ints, o: Ints, iou: Floats) -> tuple[Floats, Ints]:
    """The highest IoU of each detection, 0 where it has none, and its object: the first of equals."""
    order = np.lexsort((-o, iou, d))
    last = order[np.r_[d[order][1:] != d[order][:-1], True]] if len(d) else order
    best, index = np.zeros(size), np.full(size, -1)
    best[d[last]], index[d[last]] = iou[last], o[last]
    return best, index


def _corrections(gt: GroundTruth, det: DetectionArrays, kind: Ints, about: Ints, found: Bools) -> Ints:
    """The object that the correction of each detection finds: of those of one free object the best score does."""
    able = np.flatnonzero(np.isin(kind, (_CLASS, _LOCATION)))
    able = able[~found[about[able]]]
    order = able[np.lexsort((able, -det.scores[able].astype(np.float64), about[able]))]
    first = order[np.r_[True, about[order][1:] != about[order][:-1]]] if len(order) else order
    out = np.full(len(kind), -1)
    out[first] = about[first]
    return out


def error_rankings(gt: GroundTruth, det: DetectionArrays, errors: ErrorTypes) -> list[Ranking]:
    """The ranking of each class in `1 + len(ERROR_TYPES)` variants: as it is, and with a type of errors corrected."""
    images, variants = len(gt.image_ids), 1 + len(ERROR_TYPES)
    right, wrong = errors.matches.right, errors.type >= 0
    moves = (errors.type == _CLASS) & (errors.corrects >= 0)
    out = []
    for label in range(len(gt.categories)):
        home = det.labels == label
        comes = moves & (gt.labels[errors.corrects] == label) if len(gt.labels) else moves
        mine = ranked(gt, det, np.flatnonzero(home | comes))
        stays, kind = home[mine], errors.type[mine]
        is_right = np.tile(right[mine] & stays, (variants, 1))
        counted = np.tile((right | wrong)[mine] & stays, (variants, 1))
        for v in range(len(OF_DETECTIONS)):
            counted[v + 1] &= kind != v
        for v, finds in ((_CLASS, comes), (_LOCATION, home & (errors.type == _LOCATION) & (errors.corrects >= 0))):
            is_right[v + 1] |= finds[mine]
            counted[v + 1] |= finds[mine]
        of_class = np.bincount(gt.box_image[(gt.labels == label) & ~gt.iscrowd], minlength=images)
        objects = np.tile(of_class.astype(np.float64), (variants, 1))
        lost = errors.missed[gt.labels[errors.missed] == label]
        objects[-1] -= np.bincount(gt.box_image[lost], minlength=images)
        out.append(Ranking(det.image[mine], is_right, counted, objects))
    return out


class ErrorCosts(NamedTuple):
    """AP at `FOUND_IOU`, and how much higher it is with the errors of each type corrected."""

    ap: Floats  # [S]
    rise: Floats  # [S, E] in the order of `ERROR_TYPES`, at least 0


def error_costs(classes: list[Ranking], weights: Floats) -> ErrorCosts:
    """The costs in each sample of images, whose `weights [S, N]` say how often it has each.

    If no object of a class would be left to count, its AP is 0 where it has detections, all wrong, and else 1.
    """
    ap = average_precisions(classes, weights)  # [S, V, K]
    known = ~np.isnan(ap[:, 0])
    for k, ranking in enumerate(classes):
        none_left = np.isnan(ap[:, -1, k]) & known[:, k]
        shown = (weights[:, ranking.image] * ranking.counted[-1]).sum(axis=1) > 0
        ap[none_left, -1, k] = np.where(shown, 0.0, 1.0)[none_left]
    ap = np.where(known[:, None], ap, np.nan)
    mean = mean_defined(ap, axis=2)
    return ErrorCosts(mean[:, 0], np.maximum(mean[:, 1:] - mean[:, :1], 0.0))
