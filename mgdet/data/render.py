"""Draw one image of the generated `shapes` data: textured background, clutter, overlapping objects.

At difficulty 1 only its outline tells the class of an object: all classes and backgrounds share their colours.
At lower difficulties some objects have a hue of their class, and the background is greyer.
"""

import colorsys
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]  # [n, 2] x, y
Pixels = NDArray[np.float32]  # [h, w, 3] 0..255

SUPERSAMPLE = 3
MIN_VISIBLE = 0.35
"""Least visible share of each object's area at the highest difficulty; at lower ones more of it is visible."""
_ATTEMPTS = 8


class Scene(NamedTuple):
    """A drawn image and its `n` objects."""

    image: NDArray[np.uint8]  # [size, size, 3] RGB
    boxes: NDArray[np.float64]  # [n, 4] xyxy pixels: the whole outline, hidden parts included, cut at the border
    labels: NDArray[np.int32]  # [n] index into CLASS_NAMES


class _Object(NamedTuple):
    box: NDArray[np.float64]  # [4] uncut
    mask: NDArray[np.float32]  # [h, w] coverage 0..1
    corner: tuple[int, int]  # x, y of the mask's first pixel


def _circle(points: int = 40, radius: float = 1.0) -> Points:
    angles = np.arange(points) * (2 * math.pi / points)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius


def _star() -> Points:
    outline = _circle(10)
    outline[1::2] *= 0.42
    return outline


def _cross() -> Points:
    arm = np.array([(-0.34, -1.0), (0.34, -1.0), (0.34, -0.34)])
    quarter = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([arm @ np.linalg.matrix_power(quarter, i) for i in range(4)])


_OUTLINES: dict[str, Callable[[], tuple[Points, ...]]] = {  # further outlines are holes
    "disk": lambda: (_circle(),),
    "square": lambda: (_circle(4),),
    "triangle": lambda: (_circle(3),),
    "star": lambda: (_star(),),
    "ring": lambda: (_circle(), _circle(radius=0.55)),
    "cross": lambda: (_cross(),),
}
CLASS_NAMES = tuple(_OUTLINES)


def draw_scene(
    rng: np.random.Generator, size: int, *, max_objects: int, smallest: float, negative: bool, difficulty: float
) -> Scene:
    """One image of `size` x `size` pixels with 1..`max_objects` objects, or none if `negative`.

    Args:
        rng: the only source of randomness.
        size: pixels, at least 32.
        max_objects: objects tried; crowded scenes end with fewer.
        smallest: least width and height of an object, share of `size` (and at least 12 pixels).
        negative: draw a background only.
        difficulty: 0 to 1: turning, stretching, hiding, contrast, textures and clutter.
    """
    canvas = _background(rng, size, difficulty)
    owner = np.full((size, size), -1, dtype=np.int16)  # the object seen at each pixel
    areas: list[float] = []
    boxes: list[NDArray[np.float64]] = []
    labels: list[int] = []
    for _ in range(0 if negative else int(rng.integers(1, max_objects + 1))):
        for _ in range(_ATTEMPTS):
            label = int(rng.integers(len(CLASS_NAMES)))
            thing = _draw_object(rng, CLASS_NAMES[label], size, max(12.0, smallest * size), difficulty)
            if _place(canvas, owner, areas, thing, label, rng, difficulty):
                boxes.append(thing.box)
                labels.append(label)
                break
    noise = rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(rng.uniform(1, 5))
    image = (canvas + noise).clip(0, 255).astype(np.uint8)
    return Scene(image, np.array(boxes).reshape(-1, 4).clip(0, size), np.array(labels, dtype=np.int32))


def _draw_object(rng: np.random.Generator, name: str, size: int, smallest: float, difficulty: float) -> _Object:
    """An outline turned and stretched so that its box has exactly the drawn width and height."""
    side = math.exp(rng.uniform(math.log(smallest), math.log(0.7 * size)))
    stretch = math.exp(rng.uniform(-1, 1) * (0.2 + 0.5 * difficulty))  # its square is the aspect ratio
    extent = np.clip([side * stretch, side / stretch], smallest, 0.7 * size)
    angle = rng.uniform(-1, 1) * math.pi * (0.05 + 0.95 * difficulty)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    outlines = [outline @ turn for outline in _OUTLINES[name]()]
    low, high = outlines[0].min(axis=0), outlines[0].max(axis=0)
    margin = np.where(rng.random(2) < 0.3 * difficulty, -0.3 * extent, 0.0)  # some reach over the border
    start = margin + rng.random(2) * (size - extent - 2 * margin)
    outlines = [(outline - low) / (high - low) * extent + start for outline in outlines]
    corner = np.floor(start).astype(int)
    shape = np.ceil(start + extent).astype(int) - corner
    # Pillow's pixel i covers [i, i+1): half a (fine) pixel back makes the drawn edge meet the box.
    fine = [(outline - corner) * SUPERSAMPLE - 0.5 for outline in outlines]
    picture = Image.new("L", (int(shape[0]) * SUPERSAMPLE, int(shape[1]) * SUPERSAMPLE))
    pen = ImageDraw.Draw(picture)
    for i, outline in enumerate(fine):
        pen.polygon([tuple(p) for p in outline.tolist()], fill=0 if i else 255)
    mask = np.asarray(picture.reduce(SUPERSAMPLE), dtype=np.float32) / np.float32(255)
    return _Object(np.concatenate([start, start + extent]), mask, (int(corner[0]), int(corner[1])))


def _place(
    canvas: Pixels,
    owner: NDArray[np.int16],
    areas: list[float],
    thing: _Object,
    label: int,
    rng: np.random.Generator,
    difficulty: float,
) -> bool:
    """Paint the object over the canvas, unless too little of it, or of an object below it, would remain visible.

    Returns whether it was painted.
    """
    size = len(canvas)
    x, y = thing.corner
    height, width = thing.mask.shape
    top, left, bottom, right = max(y, 0), max(x, 0), min(y + height, size), min(x + width, size)
    mask = thing.mask[top - y : bottom - y, left - x : right - x]
    solid = mask > 0.5
    area = float(thing.mask.sum())
    least = max(MIN_VISIBLE, 0.9 - 0.75 * difficulty)
    if mask.sum() < least * area:
        return False
    below = owner[top:bottom, left:right]
    hit = np.unique(below[solid])
    for other in hit[hit >= 0]:
        seen = np.count_nonzero(owner == other) - np.count_nonzero((below == other) & solid)
        if seen < least * areas[other]:
            return False
    region = canvas[top:bottom, left:right]
    if rng.random() < 1 - difficulty:
        colour = _own_colour(rng, label)
    else:
        colour = _contrasting(rng, region, 260 - 200 * difficulty)
    paint = _texture(rng, bottom - top, right - left, colour, difficulty)
    region += (paint - region) * mask[..., None]
    below[solid] = len(areas)
    areas.append(area)
    return True


def _own_colour(rng: np.random.Generator, label: int) -> NDArray[np.float32]:
    """A saturated random colour with a hue of the class; the ranges of neighbouring classes nearly touch."""
    hue = (label + rng.uniform(-0.4, 0.4)) / len(CLASS_NAMES)
    rgb = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.6, 1), rng.uniform(0.55, 1))
    return np.array(rgb, dtype=np.float32) * 255


def _contrasting(rng: np.random.Generator, region: Pixels, distance: float) -> NDArray[np.float32]:
    """A random colour at least `distance` (sum over RGB) from the mean of what it covers, if one is soon found."""
    mean = region.reshape(-1, 3).mean(axis=0)
    for _ in range(20):
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        if np.abs(colour - mean).sum() > distance:
            break
    return colour


def _texture(rng: np.random.Generator, height: int, width: int, colour: NDArray[np.float32], strength: float) -> Pixels:
    """A flat colour, a gradient, stripes or smooth blotches around `colour`."""
    kind = int(rng.integers(4))
    amplitude = (rng.uniform(-1, 1, 3) * 90 * strength).astype(np.float32)
    if kind == 0:
        return np.broadcast_to(colour, (height, width, 3)).astype(np.float32)
    if kind == 3:
        coarse = rng.random((6, 6), dtype=np.float32) * 2 - 1
        field = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    else:
        angle = rng.uniform(0, 2 * math.pi)
        x, y = (np.arange(n, dtype=np.float32) for n in (width, height))
        ramp = x[None] * np.float32(math.cos(angle)) + y[:, None] * np.float32(math.sin(angle))
        if kind == 1:
            field = ramp * np.float32(2 / max(height, width))
        else:
            field = np.sin(ramp * np.float32(2 * math.pi / rng.uniform(5, 24)))
    return (colour + field[..., None] * amplitude).astype(np.float32, copy=False)


def _background(rng: np.random.Generator, size: int, clutter: float) -> Pixels:
    """A texture with lines and specks too small and too thin to be an object."""
    colour = rng.uniform(30, 225, 3).astype(np.float32)
    colour = colour.mean() + (colour - colour.mean()) * np.float32(0.2 + 0.8 * clutter)
    canvas = _texture(rng, size, size, colour, 0.2 + 0.8 * clutter)
    picture = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(0, 1 + round(6 * clutter)))):
        ends = [tuple(p) for p in rng.uniform(0, size, (2, 2)).tolist()]
        pen.line(ends, fill=_colour(rng), width=int(rng.integers(1, 3)))
    for _ in range(int(rng.integers(0, 1 + round(12 * clutter)))):
        x, y, r = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(0.8, 2.2)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=_colour(rng))
    return np.asarray(picture, dtype=np.float32).copy()


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue
