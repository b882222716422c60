"""Batches to assign, and the comparison of an assigner with the loop oracle."""

import torch
from torch import Tensor

from mgdet.structures import IGNORED, NEGATIVE, Assignment, Labels, Predictions, Priors, Targets
from tests.reference.assigners import Outcome

Inputs = tuple[Priors, Predictions, Targets]
INF = float("inf")
NAN = float("nan")


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


def table_inputs(
    anchors: list[tuple[float, ...]],
    objects: list[list[tuple[float, ...]]],
    *,
    labels: list[list[int]] | None = None,
    decoded: list[tuple[float, ...]] | None = None,
    logits: Tensor | float | None = None,
    classes: int = 3,
) -> Inputs:
    """A batch written out: `objects` per image; predicted boxes are the anchors and logits random unless given."""
    images, padded, amount = len(objects), max((len(image) for image in objects), default=0), len(anchors)
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
    boxes = torch.tensor(decoded or anchors).reshape(amount, 4)
    return (
        make_priors(torch.tensor(anchors).reshape(amount, 4)),
        Predictions(logits, torch.zeros(images, amount, 4), boxes.expand(images, amount, 4).clone()),
        targets,
    )


def grid(rows: int, columns: int, *, step: float = 8.0, size: float = 16.0) -> list[tuple[float, ...]]:
    """Square anchors on a regular grid, row by row, centred on the cells."""
    half = size / 2
    centres = [((c + 0.5) * step, (r + 0.5) * step) for r in range(rows) for c in range(columns)]
    return [(x - half, y - half, x + half, y + half) for x, y in centres]


def assert_well_formed(result: Assignment, inputs: Inputs) -> None:
    """Shapes, types and the range of values that every assigner keeps."""
    priors, _, targets = inputs
    shape = (targets.boxes.shape[0], priors.boxes.shape[0])
    for labels in result:
        assert labels.gt_index.shape == shape
        assert labels.weight.shape == shape
        assert labels.gt_index.dtype == torch.int64
        assert labels.weight.dtype == torch.float32
        assert not labels.weight.requires_grad
        assert (labels.gt_index >= IGNORED).all()
        assert (labels.gt_index < max(targets.boxes.shape[1], 0)).all()
        torch.testing.assert_close(labels.weight, (labels.gt_index >= 0).float(), rtol=0, atol=0)


def assert_matches(result: Assignment, expected: Outcome, inputs: Inputs) -> None:
    """Both tasks' labels are exactly the oracle's."""
    assert_well_formed(result, inputs)
    for task, labels, wanted in (("cls", result.cls, expected.cls), ("loc", result.loc, expected.loc)):
        for b, (row, wanted_row) in enumerate(zip(labels.gt_index.tolist(), wanted, strict=True)):
            wrong = [
                f"prior {a}: {r} instead of {w}" for a, (r, w) in enumerate(zip(row, wanted_row, strict=True)) if r != w
            ]
            assert not wrong, f"{task}, image {b}: {'; '.join(wrong)}"


def assert_same(left: Assignment, right: Assignment) -> None:
    """Two assignments agree exactly."""
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.gt_index, b.gt_index)
        assert torch.equal(a.weight, b.weight)


def all_negative(labels: Labels) -> bool:
    """True if no sample is positive or ignored."""
    return bool((labels.gt_index == NEGATIVE).all() and (labels.weight == 0).all())


def count_positives(labels: Labels, image: int, objects: int) -> list[int]:
    """Positives of each object of an image."""
    return [int((labels.gt_index[image] == g).sum()) for g in range(objects)]
