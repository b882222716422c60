"""VOC's average precision written as loops, in the order of its published Python evaluation."""

import numpy as np

from tests.reference.divergence import iou_of


def average_precision(objects, detections, threshold, eleven_points):
    """AP of one class at one IoU, None without an object that is not difficult.

    `objects`: `(image, box, difficult)`; `detections`: `(image, box, score)`, in order of image.
    """
    positives = sum(not difficult for _, _, difficult in objects)
    if not positives:
        return None
    written = [(image, box, float(f"{score:.3f}")) for image, box, score in detections]
    ranked = sorted(written, key=lambda row: -row[2])
    taken = [False] * len(objects)
    hits, misses, recall, precision = 0, 0, [], []
    for image, box, _ in ranked:
        best, best_iou = None, -1.0
        for g, (where, other, _) in enumerate(objects):
            if where == image and iou_of(box, other) > best_iou:
                best, best_iou = g, iou_of(box, other)
        if best is not None and best_iou > threshold:
            if not objects[best][2]:
                if taken[best]:
                    misses += 1
                else:
                    hits, taken[best] = hits + 1, True
        else:
            misses += 1
        recall.append(hits / positives)
        precision.append(hits / max(hits + misses, 1))
    return eleven(recall, precision) if eleven_points else area(recall, precision)


def eleven(recall, precision):
    """Mean over 11 recalls of the best precision at that recall or beyond."""
    at = np.arange(0.0, 1.1, 0.1).tolist()
    return sum(max((p for r, p in zip(recall, precision, strict=True) if r >= t), default=0.0) for t in at) / 11


def area(recall, precision):
    """The area under the precision that is made to fall monotonically."""
    recall, precision = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))
