"""What is compared of a detector: its numbers on many samples of the images, each a weight for every image."""

import numpy as np

from mgdet.comparison.judged import Judged
from mgdet.evaluation.average_precision import IOU_THRESHOLDS
from mgdet.evaluation.error_types import ERROR_TYPES, FOUND_IOU, NEAR_IOU, error_costs, error_rankings, error_types
from mgdet.evaluation.matching import Floats, Ints, Matches, Overlaps, match, overlaps
from mgdet.evaluation.ranking import average_precisions, mean_defined, size_rankings
from mgdet.structures import unique_names

AP, DIVERGENCE = "AP", "divergence"
SIZES = {"APs": "small", "APm": "medium", "APl": "large"}
ERROR = "AP50 lost to "
"""Before the name of a type of errors."""
OF_CLASS = "AP/"
LEAST_MATCHES = 3
"""A class with fewer matched detections has no rank correlation."""
_CHUNK = 1 << 21


def lower_is_better(statistic: str) -> bool:
    """Whether a lower value is the better one."""
    return statistic == DIVERGENCE or statistic.startswith(ERROR)


def statistics(judged: Judged, weights: Floats, max_dets: int = 100) -> dict[str, Floats]:
    """Each number in each of `S` samples of the images, `[S]`; NaN where it is undefined.

    AP, AP50, AP75, AP by size and by class as COCO has them; the divergence of the detections that match an object at
    an IoU of 0.5, `val/divergence`, with the scores by which they are ranked; and by type of error the AP50 lost to it.

    Args:
        judged: `N` images.
        weights: `[S, N]` how often a sample has each image.
        max_dets: best detections of an image and class that count.
    """
    gt, det = judged.gt, judged.det
    near = overlaps(gt, det, NEAR_IOU, same_class=False)
    same = (det.labels[near.detection] == gt.labels[near.object]) & (near.iou >= IOU_THRESHOLDS[0])
    found = near.take(same)
    out: dict[str, Floats] = {}
    of_sizes = size_rankings(gt, det, found, max_dets)
    ap = average_precisions(of_sizes["all"], weights)  # [S, T, K]
    out[AP] = mean_defined(ap, axis=(1, 2))
    out["AP50"], out["AP75"] = (mean_defined(ap[:, t], axis=1) for t in (0, 5))
    for name, size in SIZES.items():
        out[name] = mean_defined(average_precisions(of_sizes[size], weights), axis=(1, 2))
    matches = Matches(*(part[0] for part in match(gt, det, found, np.array([FOUND_IOU]), max_dets=max_dets)))
    out[DIVERGENCE] = divergence(judged, found, matches, weights)
    costs = error_costs(error_rankings(gt, det, error_types(gt, det, near, matches)), weights)
    out |= {f"{ERROR}{name}": costs.rise[:, e] for e, name in enumerate(ERROR_TYPES)}
    out |= {
        f"{OF_CLASS}{name}": mean_defined(ap[:, :, k], axis=1) for k, name in enumerate(unique_names(gt.categories))
    }
    return out


def divergence(judged: Judged, found: Overlaps, matches: Matches, weights: Floats) -> Floats:
    """1 minus Spearman's rank correlation of score and IoU of the matched detections, mean over classes, `[S]`."""
    det, gt = judged.det, judged.gt
    right = np.flatnonzero(matches.right)
    size = len(gt.boxes)
    key = found.detection * size + found.object  # ascending
    place = np.searchsorted(key, right * size + matches.object[right])
    iou = found.iou[place]
    rho = np.full((len(weights), len(gt.categories)), np.nan)
    for label in range(len(gt.categories)):
        mine = np.flatnonzero(det.labels[right] == label)
        if len(mine) >= LEAST_MATCHES:
            image, score = det.image[right[mine]], det.scores[right[mine]].astype(np.float64)
            step = max(1, _CHUNK // len(mine))
            for start in range(0, len(weights), step):
                rows = slice(start, start + step)
                rho[rows, label] = weighted_spearman(score, iou[mine], weights[rows][:, image])
    return 1.0 - mean_defined(rho, axis=1)


def weighted_spearman(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Spearman's rank correlation `[S]` of `x` and `y` `[n]`, each pair as often as `weights [S, n]` say.

    Average ranks for ties. NaN for fewer than `LEAST_MATCHES` pairs and where one side is constant.
    """
    a, b = _centred_ranks(x, weights), _centred_ranks(y, weights)
    total = weights.sum(axis=1)
    spread = np.sqrt((weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1))
    defined = (spread > 0) & (total >= LEAST_MATCHES)
    rho = np.divide((weights * a * b).sum(axis=1), spread, out=np.full(len(total), np.nan), where=defined)
    return np.asarray(np.clip(rho, -1.0, 1.0))


def _centred_ranks(values: Floats, weights: Floats) -> Floats:
    """Average rank of each of `n` values in each sample, minus the mean rank: `[S, n]`, twice, so that it is whole."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    run: Ints = np.cumsum(np.r_[False, ordered[1:] != ordered[:-1]])
    size = np.add.reduceat(weights[:, order], starts, axis=1)  # of each run of equal values
    before = np.cumsum(size, axis=1) - size
    doubled = 2 * before + size - weights.sum(axis=1, keepdims=True)
    out = np.empty(weights.shape)
    out[:, order] = doubled[:, run]
    return out
