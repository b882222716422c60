"""Batches to assign, and the comparison of an assigner with the loop oracle."""

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mgdet.assign import Assigner
from mgdet.structures import IGNORED, NEGATIVE, Assignment, Labels, Predictions, PriorLayout, Priors, Targets
from tests.reference.assigners import Outcome

Inputs = tuple[Priors, Predictions, Targets]
INF = float("inf")
NAN = float("nan")


def assign(assigner: Assigner, inputs: Inputs) -> Assignment:
    """The labels of an assigner; the priors of the inputs are those of its predictions."""
    priors, predictions, targets = inputs
    return assigner(predictions.replace(priors=priors), targets)


def tasks(assignment: Assignment) -> tuple[Labels, Labels]:
    """The labels of classification and of localization."""
    return assignment.cls, assignment.loc


def make_priors(boxes: Tensor) -> Priors:
    """Priors of one level."""
    return Priors(boxes=boxes, strides=torch.full((len(boxes),), 8.0), level_counts=(len(boxes),))


def random_boxes(generator: torch.Generator, *shape: int, step: float) -> Tensor:
    """Boxes of 4 pixels or more on a 64-pixel canvas, all coordinates multiples of `step` (0: continuous)."""
    centre = torch.rand(*shape, 2, generator=generator) * 64
    size = 4 + torch.rand(*shape, 2, generator=generator) * 32
    boxes = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
    if step:
        boxes = (boxes / step).round() * step
        boxes[..., 2:] = torch.maximum(boxes[..., 2:], boxes[..., :2] + step)
    return boxes


def random_inputs(
    seed: int,
    *,
    images: int = 2,
    objects: int = 5,
    anchors: int = 40,
    classes: int = 3,
    step: float = 0.0,
    all_valid: bool = False,
) -> Inputs:
    """A random batch: some objects padding, some repeated, some near an anchor; a prediction is its anchor, shifted."""
    generator = torch.Generator().manual_seed(seed)
    anchor_boxes = random_boxes(generator, anchors, step=step)
    boxes = random_boxes(generator, images, objects, step=step)
    valid = torch.ones(images, objects, dtype=torch.bool)
    if not all_valid:
        valid = torch.rand(images, objects, generator=generator) < 0.8
    noise = torch.randn(images, anchors, 4, generator=generator) * 4
    decoded = anchor_boxes + (noise if not step else (noise / step).round() * step)
    return (
        make_priors(anchor_boxes),
        Predictions(
            priors=make_priors(anchor_boxes),
            logits=torch.randn(images, anchors, classes, generator=generator) * 3,
            deltas=torch.zeros(images, anchors, 4),
            boxes=decoded,
        ),
        Targets(
            boxes=torch.where(valid.unsqueeze(-1), boxes, 0.0),
            labels=torch.randint(classes, (images, objects), generator=generator),
            valid=valid,
        ),
    )


ANCHOR_SHAPES = {1: [(3.0, 3.0)], 2: [(2.0, 2.0), (4.0, 4.0)], 3: [(3.0, 3.0), (2.0, 4.0), (4.0, 2.0)]}
"""Widths and heights in strides, by the number of anchors per location; all exact in binary, so are the centres."""

DEGENERATE = {
    "no width": (5.0, 5.0, 5.0, 15.0),
    "no height": (5.0, 5.0, 15.0, 5.0),
    "a point": (5.0, 5.0, 5.0, 5.0),
    "inverted": (15.0, 5.0, 5.0, 15.0),
    "inverted twice": (15.0, 15.0, 5.0, 5.0),
    "one NaN": (NAN, 5.0, 15.0, 15.0),
    "all NaN": (NAN, NAN, NAN, NAN),
    "infinite corner": (5.0, 5.0, INF, 15.0),
    "infinite": (-INF, -INF, INF, INF),
}
"""Boxes that are no objects, by name."""


def pyramid(*levels: tuple[float, int, int], points: bool, per_location: int = 1) -> Priors:
    """Priors of some levels, each given as (stride, rows, columns)."""
    shapes = [(1.0, 1.0)] * per_location if points else ANCHOR_SHAPES[per_location]
    boxes, strides, counts = [], [], []
    for stride, rows, columns in levels:
        centres = [((c + 0.5) * stride, (r + 0.5) * stride) for r in range(rows) for c in range(columns)]
        for x, y in centres:
            for w, h in shapes:
                w, h = w * stride / 2, h * stride / 2
                boxes.append((x - w, y - h, x + w, y + h))
        counts.append(len(centres) * per_location)
        strides += [stride] * counts[-1]
    return Priors(torch.tensor(boxes), torch.tensor(strides), tuple(counts), PriorLayout(points, per_location))


def canvas_priors(points: bool, per_location: int = 1, canvas: int = 64) -> Priors:
    """Levels of strides 8, 16 and 32 over a square canvas."""
    sides = {stride: canvas // stride for stride in (8, 16, 32)}
    return pyramid(*((float(s), n, n) for s, n in sides.items()), points=points, per_location=per_location)


def grid_inputs(
    seed: int,
    *,
    points: bool,
    per_location: int = 1,
    images: int = 2,
    objects: int = 5,
    classes: int = 3,
    step: float = 0.0,
    canvas: int = 64,
    clean: bool = False,
) -> Inputs:
    """A random batch on the levels of `canvas_priors`, objects from 2 to 60 pixels.

    Some objects are repeated, degenerate or padding and some predicted boxes are wild, unless `clean`. With a `step`
    the coordinates are multiples of it and the logits whole numbers, so that much is exactly equal.
    """
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def snap(values: Tensor, to: float) -> Tensor:
        return (values / to).round() * to if step else values

    priors = canvas_priors(points, per_location, canvas)
    amount = len(priors.boxes)

    centre, size = rand(images, objects, 2) * canvas, 2 * 30 ** rand(images, objects, 2)
    boxes = snap(torch.cat([centre - size / 2, centre + size / 2], dim=-1), step)
    boxes[..., 2:] = torch.maximum(boxes[..., 2:], boxes[..., :2] + step)
    labels = torch.randint(classes, (images, objects), generator=generator)
    valid = torch.ones(images, objects, dtype=torch.bool)
    if not clean and objects:
        copied = rand(images, objects) < 0.2
        boxes = torch.where(copied[..., None], boxes[:, :1], boxes)
        kinds = torch.tensor(list(DEGENERATE.values()))[torch.randint(9, (images, objects), generator=generator)]
        boxes = torch.where((rand(images, objects) < 0.1)[..., None], kinds, boxes)
        valid = rand(images, objects) < 0.85

    # one half of the predicted boxes is near the prior, the other near an object of the image
    half = 0.5 * (priors.boxes[:, 2:] - priors.boxes[:, :2]) * (2 if points else 1)
    middle = 0.5 * (priors.boxes[:, 2:] + priors.boxes[:, :2])
    decoded = torch.cat([middle - half, middle + half], dim=1).repeat(images, 1, 1)
    if objects:
        aim = torch.randint(objects, (images, amount), generator=generator)
        aimed = boxes.nan_to_num(0.0, 0.0, 0.0).gather(1, aim[..., None].expand(-1, -1, 4))
        decoded = torch.where((rand(images, amount) < 0.5)[..., None], aimed, decoded)
    decoded = snap(decoded + torch.randn(images, amount, 4, generator=generator) * 3, step)
    if not clean:
        values = torch.tensor([NAN, INF, -INF, 1e30, -1e30, 3.0])
        wild = values[torch.randint(6, (images, amount, 4), generator=generator)]
        decoded = torch.where((rand(images, amount) < 0.05)[..., None], wild, decoded)
    logits = snap(torch.randn(images, amount, classes, generator=generator) * 2 - 1, 1.0)
    return (
        priors,
        Predictions(priors, logits, torch.zeros(images, amount, 4), decoded),
        Targets(torch.where(valid[..., None], boxes, 0.0), labels, valid),
    )


LAYOUTS: dict[str, dict[str, int]] = {
    "anchors": {"points": False, "per_location": 1, "canvas": 64},
    "three anchors": {"points": False, "per_location": 3, "canvas": 32},
    "points": {"points": True, "per_location": 1, "canvas": 64},
}
STEPS = [0.0, 1.0, 4.0, 8.0]
"""Coordinates with steps of 4 and 8 pixels give many equal IoUs, equal boxes and exact thresholds."""


def named_inputs(seed: int, layout: str, **options) -> Inputs:
    """`grid_inputs` on one of `LAYOUTS`."""
    return grid_inputs(seed, **{**LAYOUTS[layout], **options})


def batches(*layouts: str) -> st.SearchStrategy[dict]:
    """Arguments of `named_inputs`, for hypothesis."""
    return st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**31),
            "layout": st.sampled_from(layouts),
            "images": st.integers(1, 2),
            "objects": st.integers(0, 7),
            "step": st.sampled_from(STEPS),
        }
    )


def positives_of(labels: Labels, image: int = 0) -> dict[int, list[int]]:
    """Priors of each object that has any, in one image."""
    found: dict[int, list[int]] = {}
    for a, g in enumerate(labels.gt_index[image].tolist()):
        if g >= 0:
            found.setdefault(g, []).append(a)
    return found


def table_inputs(
    anchors: Priors | list[tuple[float, ...]],
    objects: list[list[tuple[float, ...]]],
    *,
    labels: list[list[int]] | None = None,
    decoded: list[tuple[float, ...]] | None = None,
    logits: Tensor | float | None = None,
    classes: int = 3,
) -> Inputs:
    """A batch written out: `objects` per image; predicted boxes are the priors and logits random unless given."""
    priors = anchors if isinstance(anchors, Priors) else make_priors(torch.tensor(anchors).reshape(len(anchors), 4))
    images, padded, amount = len(objects), max((len(image) for image in objects), default=0), len(priors.boxes)
    targets = Targets(
        boxes=torch.zeros(images, padded, 4),
        labels=torch.zeros(images, padded, dtype=torch.int64),
        valid=torch.zeros(images, padded, dtype=torch.bool),
    )
    for b, image in enumerate(objects):
        for g, box in enumerate(image):
            targets.boxes[b, g] = torch.tensor(box)
            targets.labels[b, g] = labels[b][g] if labels else g % classes
            targets.valid[b, g] = True
    if logits is None:
        logits = torch.randn(images, amount, classes, generator=torch.Generator().manual_seed(amount))
    elif not isinstance(logits, Tensor):
        logits = torch.full((images, amount, classes), float(logits))
    boxes = torch.tensor(decoded).reshape(amount, 4) if decoded else priors.boxes
    return (
        priors,
        Predictions(priors, logits, torch.zeros(images, amount, 4), boxes.expand(images, amount, 4).clone()),
        targets,
    )


def grid(rows: int, columns: int, *, step: float = 8.0, size: float = 16.0) -> list[tuple[float, ...]]:
    """Square anchors on a regular grid, row by row, centred on the cells."""
    half = size / 2
    centres = [((c + 0.5) * step, (r + 0.5) * step) for r in range(rows) for c in range(columns)]
    return [(x - half, y - half, x + half, y + half) for x, y in centres]


def assert_well_formed(result: Assignment, inputs: Inputs, *, soft: bool = False) -> None:
    """Shapes, types and the range of values that every assigner keeps; `soft` weights need only be above 0."""
    priors, _, targets = inputs
    shape = (targets.boxes.shape[0], priors.boxes.shape[0])
    for labels in tasks(result):
        assert labels.gt_index.shape == shape
        assert labels.weight.shape == shape
        assert labels.gt_index.dtype == torch.int64
        assert labels.weight.dtype == torch.float32
        assert not labels.weight.requires_grad
        assert (labels.gt_index >= IGNORED).all()
        assert (labels.gt_index < max(targets.boxes.shape[1], 0)).all()
        if soft:
            assert torch.isfinite(labels.weight).all()
            assert torch.equal(labels.weight > 0, labels.gt_index >= 0)
            assert (labels.weight >= 0).all()
        else:
            assert torch.equal(labels.weight, (labels.gt_index >= 0).float())


def assert_matches(result: Assignment, expected: Outcome, inputs: Inputs) -> None:
    """Both tasks' labels are exactly the oracle's, and the weights nearly, where it gives them."""
    soft = expected.weights is not None
    assert_well_formed(result, inputs, soft=soft)
    both = (
        ("cls", result.cls, expected.cls, expected.weights),
        ("loc", result.loc, expected.loc, expected.loc_weights or expected.weights),
    )
    for task, labels, wanted, weights in both:
        for b, (row, wanted_row) in enumerate(zip(labels.gt_index.tolist(), wanted, strict=True)):
            wrong = [
                f"prior {a}: {r} instead of {w}" for a, (r, w) in enumerate(zip(row, wanted_row, strict=True)) if r != w
            ]
            assert not wrong, f"{task}, image {b}: {'; '.join(wrong)}"
        if soft:
            wanted_weight = torch.tensor(weights).reshape(labels.weight.shape)
            torch.testing.assert_close(labels.weight, wanted_weight, rtol=1e-5, atol=0)


def assert_same(left: Assignment, right: Assignment) -> None:
    """Two assignments agree exactly."""
    for a, b in zip(tasks(left), tasks(right), strict=True):
        assert torch.equal(a.gt_index, b.gt_index)
        assert torch.equal(a.weight, b.weight)


def all_negative(labels: Labels) -> bool:
    """True if no sample is positive or ignored."""
    return bool((labels.gt_index == NEGATIVE).all() and (labels.weight == 0).all())


def count_positives(labels: Labels, image: int, objects: int) -> list[int]:
    """Positives of each object of an image."""
    return [int((labels.gt_index[image] == g).sum()) for g in range(objects)]


class Recorder(TorchDispatchMode):
    """Counts the operators whose result the host must wait for."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if by_mask or any(name == w or name.startswith(w + "_") for w in self.WAITING):
            self.waits.append(name)
        return func(*args, **(kwargs or {}))
