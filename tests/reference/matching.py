"""COCO's matching of detections to objects, as a loop over both."""


def coco_matches(gt, det, threshold, max_dets):
    """For each detection ("right", object), ("ignored", object or None) or ("wrong", None).

    Detections of an image and class, best score first, each take the object of the highest IoU of at least `threshold`
    that is free; crowds are always free, but only taken where there is no other, and by intersection over the
    detection's area. Detections beyond the first `max_dets` are ignored.
    """
    found = {}
    for image in range(len(gt.image_ids)):
        for label in range(len(gt.categories)):
            mine = [d for d in range(len(det.scores)) if det.image[d] == image and det.labels[d] == label]
            mine.sort(key=lambda d: -det.scores[d])  # stable
            objects = [g for g in range(len(gt.boxes)) if gt.box_image[g] == image and gt.labels[g] == label]
            taken = set()
            for rank, d in enumerate(mine):
                if rank >= max_dets:
                    found[d] = ("ignored", None)
                    continue
                best, overlap = None, threshold
                for g in objects:
                    if not gt.iscrowd[g] and g not in taken and iou(det.boxes[d], gt.boxes[g], False) >= overlap:
                        best, overlap = g, iou(det.boxes[d], gt.boxes[g], False)  # the last of equals
                if best is not None:
                    taken.add(best)
                    found[d] = ("right", best)
                    continue
                for g in objects:
                    if gt.iscrowd[g] and iou(det.boxes[d], gt.boxes[g], True) >= overlap:
                        best, overlap = g, iou(det.boxes[d], gt.boxes[g], True)
                found[d] = ("ignored", best) if best is not None else ("wrong", None)
    return found


def iou(one, other, crowd):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = (one[2] - one[0]) * (one[3] - one[1])
    rest = 0.0 if crowd else (other[2] - other[0]) * (other[3] - other[1]) - width * height
    return width * height / (area + rest)


def best_f1(right, counted, scores, objects):
    """(F1, score, precision, recall) at the threshold of the highest F1; the highest such score."""
    best = (0.0, None, None, None)
    for threshold in sorted(set(scores), reverse=True):
        taken = [k for k in range(len(scores)) if scores[k] >= threshold and counted[k]]
        hits = sum(right[k] for k in taken)
        f1 = 2 * hits / (objects + len(taken))
        if f1 > best[0] and taken:
            best = (f1, threshold, hits / len(taken), hits / objects)
    return best
