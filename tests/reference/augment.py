"""Augmentations in plain loops, pixel by pixel and box by box."""

import colorsys

FILL = (124, 116, 104)


def blank(height, width):
    """An image as a dictionary from (x, y) to an RGB colour."""
    return {(x, y): FILL for y in range(height) for x in range(width)}


def pixels(image):
    """A tensor [3, H, W] as such a dictionary."""
    _, height, width = image.shape
    return {(x, y): tuple(image[:, y, x].tolist()) for y in range(height) for x in range(width)}


def expand(image, boxes, x, y, height, width):
    out = blank(height, width)
    out.update({(px + x, py + y): color for (px, py), color in pixels(image).items()})
    return out, [[b[0] + x, b[1] + y, b[2] + x, b[3] + y] for b in boxes]


def quarter_turn(image, boxes):
    """To the left: what was at the right border is at the top."""
    width = image.shape[2]
    out = {(y, width - 1 - x): color for (x, y), color in pixels(image).items()}
    return out, [[b[1], width - b[2], b[3], width - b[0]] for b in boxes]


def overlap(a, b):
    sides = [max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    both = sides[0] * sides[1]
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def centre_within(box, frame):
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return frame[0] < x < frame[2] and frame[1] < y < frame[3]


def fitting_part(candidates, boxes, labels, minimum):
    """The first candidate with an object whose centre it has and that it overlaps enough; None: there is none."""
    for part in candidates:
        for box, label in zip(boxes, labels, strict=True):
            if label >= 0 and centre_within(box, part) and overlap(part, box) >= minimum:
                return part
    return None


def crop(image, boxes, labels, part):
    x1, y1, x2, y2 = part
    inside = {(x - x1, y - y1): c for (x, y), c in pixels(image).items() if x1 <= x < x2 and y1 <= y < y2}
    kept = []
    for box, label in zip(boxes, labels, strict=True):
        cut = [max(box[0], x1) - x1, max(box[1], y1) - y1, min(box[2], x2) - x1, min(box[3], y2) - y1]
        if (label < 0 or centre_within(box, part)) and cut[2] > cut[0] and cut[3] > cut[1]:
            kept.append((cut, label))
    return inside, kept


def mixup(first, second, share):
    sizes = [max(first.shape[i], second.shape[i]) for i in (1, 2)]
    a, b = ({**blank(*sizes), **pixels(image)} for image in (first, second))
    return {
        place: tuple(round((1 - share) * u + share * v) for u, v in zip(a[place], b[place], strict=True)) for place in a
    }


def mosaic_quarters(x, y, sizes):
    """Upper left corners of four pictures of these (height, width) that meet at (x, y)."""
    return [(x - w if q in (0, 2) else x, y - h if q in (0, 1) else y) for q, (h, w) in enumerate(sizes)]


def grey(color):
    return 0.2989 * color[0] + 0.587 * color[1] + 0.114 * color[2]


def blend(image, other, factor):
    return {p: tuple(min(255.0, max(0.0, factor * v + (1 - factor) * o)) for v, o in zip(c, other(c), strict=True))
            for p, c in image.items()}  # fmt: skip


def brightness(image, factor):
    return blend(image, lambda c: (0, 0, 0), factor)


def contrast(image, factor):
    mean = sum(map(grey, image.values())) / len(image)
    return blend(image, lambda c: (mean,) * 3, factor)


def saturation(image, factor):
    return blend(image, lambda c: (grey(c),) * 3, factor)


def hue(image, shift):
    out = {}
    for place, color in image.items():
        h, s, v = colorsys.rgb_to_hsv(*(value / 255 for value in color))
        out[place] = tuple(value * 255 for value in colorsys.hsv_to_rgb((h + shift) % 1, s, v))
    return out
