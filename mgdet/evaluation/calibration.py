"""Does a score say how often a detection is right? And which class is taken for which?"""

from typing import Any, NamedTuple

import numpy as np

from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.evaluation.matching import Bools, Floats, Ints, Matches, match, overlaps
from mgdet.ground_truth import GroundTruth

BINS = 10


class Calibration(NamedTuple):
    """Scores against the share of right detections, in `BINS` ranges of the score of equal width.

    `error` is the expected calibration error (Guo et al., ICML 2017, equation 3, over detections): the mean over all
    detections of the difference between the mean score and the share of right ones in their range. `worst` is the
    largest such difference. None: there are no detections.
    """

    detections: Ints  # [BINS]
    score: Floats  # [BINS] mean score; NaN without a detection
    right: Floats  # [BINS] share of right ones; NaN without a detection
    error: float | None
    worst: float | None

    def as_json(self) -> dict[str, Any]:
        """Plain values; null for what is undefined."""
        columns = zip(self.detections.tolist(), self.score.tolist(), self.right.tolist(), strict=True)
        rows = [{"detections": n, "score": s if n else None, "right": r if n else None} for n, s, r in columns]
        return {"expected_error": self.error, "largest_error": self.worst, "bins": rows}


def calibration(det: DetectionArrays, matches: Matches) -> Calibration:
    """Calibration of the detections that are not ignored, whose outcome the matches `[D]` say."""
    chosen = ~matches.ignored
    score, right = det.scores[chosen].astype(np.float64), matches.right[chosen]
    place = np.clip((score * BINS).astype(np.int64), 0, BINS - 1)
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, score, BINS) / count
        share = np.bincount(place, right, BINS) / count
    if not len(score):
        return Calibration(count, mean, share, None, None)
    gap = np.abs(mean - share)[count > 0]
    return Calibration(count, mean, share, float((gap * count[count > 0]).sum() / len(score)), float(gap.max()))


def confusion(gt: GroundTruth, det: DetectionArrays, kept: Bools, threshold: float = 0.5) -> Ints:
    """How often which class was taken for which, `[K + 1, K + 1]`.

    Detections of all classes of an image, best score first, each take the free object of the highest IoU. Rows are the
    classes of the objects, columns those of the detections. The last row has detections that found no object, the last
    column objects that no detection found. Detections in crowds are left out.

    Args:
        gt: the objects.
        det: the detections.
        kept: `[D]` which of them count: those with the score from which on one would show them.
        threshold: IoU.
    """
    k = len(gt.categories)
    part = DetectionArrays(det.image[kept], det.boxes[kept], det.scores[kept], det.labels[kept])
    near = overlaps(gt, part, threshold, same_class=False)
    found = match(gt, part, near, np.array([threshold]), max_dets=max(1, len(part.scores)), same_class=False)
    right, ignored, index = (column[0] for column in found)
    out = np.zeros((k + 1, k + 1), dtype=np.int64)
    truth = np.where(right, gt.labels[index] if len(gt.labels) else k, k)
    np.add.at(out, (truth[~ignored], part.labels[~ignored]), 1)
    lost = ~gt.iscrowd
    lost[index[right]] = False
    out[:k, k] = np.bincount(gt.labels[lost], minlength=k)
    return out
