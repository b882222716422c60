"""The detections of tiles put together in plain loops."""


def overlap(a, b):
    sides = [max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    both = sides[0] * sides[1]
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return both / (sum(areas) - both) if both else 0.0


def cuts(frame, box, size, edge):
    """Whether a border of the tile that is not one of the picture lies on the box, or the box reaches beyond it."""
    height, width = size
    return (
        (frame[0] > 0 and box[0] - frame[0] <= edge)
        or (frame[1] > 0 and box[1] - frame[1] <= edge)
        or (frame[2] < width and frame[2] - box[2] <= edge)
        or (frame[3] < height and frame[3] - box[3] <= edge)
    )


def kept(boxes, scores, labels, tile, frames, size, nms_iou, edge):
    candidates = []
    for i, box in enumerate(boxes):
        whole_elsewhere = any(not cuts(frame, box, size, edge) for frame in frames)
        if not cuts(frames[tile[i]], box, size, edge) or not whole_elsewhere:
            candidates.append(i)
    out = []
    for i in sorted(candidates, key=lambda i: -scores[i]):
        if all(labels[i] != labels[j] or overlap(boxes[i], boxes[j]) <= nms_iou for j in out):
            out.append(i)
    return out
