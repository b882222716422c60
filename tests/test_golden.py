"""What the assigners and losses gave at version 0.1.0, kept so that no refactoring changes them without a word.

Labels are integers: they must be equal to the bit on every machine. Losses and trained weights pass through `exp`,
`log` and convolutions, whose last bits depend on the processor, so they are compared up to rounding.

`python -m tests.test_golden` writes golden.json anew. Do so only for a change that is meant to alter these values, and
say in CHANGELOG.md what it alters.
"""

import hashlib
import itertools
import json
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from mgdet.assign import AssignerConfig
from mgdet.models import LossConfig
from mgdet.models.coder import AnchorCoder, PointCoder
from mgdet.structures import Predictions, PriorLayout, Priors, Targets
from tests.small import small_experiment

GOLDEN = Path(__file__).with_name("golden.json")
CANVAS, STRIDES, CLASSES = 128, (8, 16, 32), 4
OBJECTS = {"few": (3, 24.0, 80.0), "crowded": (24, 10.0, 60.0), "tiny": (8, 2.0, 9.0), "none": (0, 1.0, 1.0)}
ASSIGNERS = {
    "max_iou": [{}, {"force_match": False}],
    "center_sampling": [{}, {"radius": None}],
    "atss": [{}],
    "task_aligned": [{}],
    "simota": [{}],
    "mutual_guidance": [
        *({"direction": d} for d in ("both", "loc_to_cls", "cls_to_loc", "none")),
        *({"count": c} for c in ("dynamic_k", "mean_std")),
        {"amplify": "exponential"},
    ],
    "mutual_labeling": [
        *({"direction": d} for d in ("both", "loc_to_cls", "cls_to_loc", "none")),
        *({"count": c} for c in ("dynamic_k", "mean_std")),
        *({"criterion": c} for c in ("score", "amplified")),
        {"region": "centre"},
    ],
}
CLASS_LOSSES = [{"name": n, "target": t} for n in ("focal", "quality_focal", "varifocal") for t in ("assigned", "iou")]
BOX_LOSSES = [
    *({"name": n} for n in ("l1", "smooth_l1", "balanced_l1", "giou")),
    *({"name": "giou", "weighted_by": w} for w in ("iou", "centerness", "score")),
]
EXTRAS = [{"correlation": {"kind": k}} for k in ("concordance", "pearson", "spearman")]


def priors(points: bool) -> Priors:
    """Three levels over the canvas: a point at each location, or anchors of three shapes."""
    shapes = [(1.0, 1.0)] if points else [(4.0, 4.0), (2.8, 5.7), (5.7, 2.8)]
    boxes, strides, counts = [], [], []
    for stride in STRIDES:
        places = [(x * stride, y * stride) for y in range(CANVAS // stride) for x in range(CANVAS // stride)]
        for (x, y), (w, h) in itertools.product(places, shapes):
            boxes.append([x - w * stride / 2, y - h * stride / 2, x + w * stride / 2, y + h * stride / 2])
            strides.append(float(stride))
        counts.append(len(places) * len(shapes))
    return Priors(torch.tensor(boxes), torch.tensor(strides), tuple(counts), PriorLayout(points, len(shapes)))


def problem(points: bool, objects: str) -> tuple[Predictions, Targets]:
    """Two images with random objects, and predictions that somewhat know them."""
    count, low, high = OBJECTS[objects]
    g = torch.Generator().manual_seed(1000 * points + count)
    places = priors(points)
    centre = torch.rand(2, count, 2, generator=g) * CANVAS
    half = (low + (high - low) * torch.rand(2, count, 2, generator=g)) / 2
    labels = torch.randint(CLASSES, (2, count), generator=g)
    valid = torch.rand(2, count, generator=g) > 0.1
    targets = Targets(torch.cat([centre - half, centre + half], -1), labels, valid)
    amount = len(places.boxes)
    boxes = places.boxes + 6 * torch.randn(2, amount, 4, generator=g)
    boxes[..., 2:] = torch.maximum(boxes[..., 2:], boxes[..., :2] + 1)
    logits = 2 * torch.randn(2, amount, CLASSES, generator=g) - 2
    deltas = torch.randn(2, amount, 4, generator=g)
    return Predictions(places, logits, deltas, boxes, torch.randn(2, amount, generator=g)), targets


def digest(*tensors: torch.Tensor) -> str:
    """A hash of integer tensors."""
    found = hashlib.sha256()
    for t in tensors:
        found.update(t.numpy().tobytes())
    return found.hexdigest()[:20]


def label_cases() -> dict[str, tuple]:
    """Every assigner and variant on both kinds of priors, where it is defined."""
    cases = {}
    for name, variants in ASSIGNERS.items():
        for points, objects, options in itertools.product((False, True), OBJECTS, variants):
            if (name == "max_iou" and points) or (name == "center_sampling" and not points):
                continue
            kind = "points" if points else "anchors"
            cases[f"{name} {json.dumps(options)} {kind} {objects}"] = (name, options, points, objects)
    return cases


def labels(name: str, options: dict, points: bool, objects: str) -> dict:
    assigner = TypeAdapter(AssignerConfig).validate_python({"name": name, **options})
    found = assigner(*problem(points, objects))
    weights = [float(part.weight.double().sum()) for part in (found.cls, found.loc)]
    return {"labels": digest(found.cls.gt_index, found.loc.gt_index), "weights": weights}


def loss_cases() -> dict[str, tuple]:
    """Every class loss, box loss and correlation."""
    options = [{"cls": c} for c in CLASS_LOSSES] + [{"box": b} for b in BOX_LOSSES] + EXTRAS
    return {
        f"{json.dumps(o)} {'points' if points else 'anchors'}": (o, points) for points in (False, True) for o in options
    }


def losses(options: dict, points: bool) -> dict:
    """The terms with the quality branch on, and the norm of the gradient of the total."""
    predictions, targets = problem(points, "few")
    name = "mutual_labeling" if points else "mutual_guidance"
    assignment = TypeAdapter(AssignerConfig).validate_python({"name": name})(predictions, targets)
    leaf = predictions.replace(
        **{k: getattr(predictions, k).clone().requires_grad_() for k in ("logits", "deltas", "boxes", "quality")}
    )
    coder = PointCoder() if points else AnchorCoder((1.0, 1.0, 1.0, 1.0))
    found = LossConfig.model_validate(options)(leaf, targets, assignment, coder, lambda t: t, "iou")
    found.total.backward()
    leaves = (leaf.logits, leaf.deltas, leaf.boxes, leaf.quality)
    gradient = sum(float(t.grad.double().square().sum()) for t in leaves if t.grad is not None)
    terms = {name: float(value) for name, value in found.terms.items()}
    return {"total": float(found.total.detach()), "terms": terms, "gradient": gradient}


def trained(detector: str, directory: Path) -> dict:
    """The losses of three steps of a small network, and the norm of its weights after them."""
    from mgdet.runs.launch import prepare
    from mgdet.tracking import NullTracker
    from mgdet.training.distributed import World
    from mgdet.training.loop import Worker

    model = {"name": detector, "backbone": "resnet18", "norm": "gn", "channels": 32}
    changes = {"model": model, "data__transform__hflip": 0.0, "train__epochs": 1}
    experiment = prepare(small_experiment(directory, **changes), cpus=1, gpus=0)[0]
    worker = Worker(experiment, World(0, 1, torch.device("cpu")), NullTracker())
    metrics = worker.run()
    norm = sum(float(p.double().square().sum()) for p in worker.detector.parameters())
    torch.use_deterministic_algorithms(False)
    return {"norm": norm, "AP": metrics["val/AP"]}


def everything(directory: Path) -> dict:
    return {
        "labels": {k: labels(*v) for k, v in label_cases().items()},
        "losses": {k: losses(*v) for k, v in loss_cases().items()},
        "trained": {d: trained(d, directory / d) for d in ("retinanet", "fcos")},
    }


def close(found, expected):
    """Equal numbers up to rounding, in dictionaries of the same keys."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            close(found[key], expected[key])
    else:
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", ASSIGNERS)
def test_labels_are_those_of_the_first_release(golden, name):
    expected = {k: v for k, v in golden["labels"].items() if k.split()[0] == name}
    found = {k: labels(*v) for k, v in label_cases().items() if v[0] == name}
    assert {k: v["labels"] for k, v in found.items()} == {k: v["labels"] for k, v in expected.items()}
    close({k: v["weights"] for k, v in found.items()}, {k: v["weights"] for k, v in expected.items()})


def test_losses_and_gradients_are_those_of_the_first_release(golden):
    close({k: losses(*v) for k, v in loss_cases().items()}, golden["losses"])


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["retinanet", "fcos"])
def test_a_training_is_that_of_the_first_release(golden, detector, tmp_path):
    close(trained(detector, tmp_path), golden["trained"][detector])


def test_the_cases_differ(golden):
    """A hash that is the same for all variants would compare nothing."""
    few = {k: v["labels"] for k, v in golden["labels"].items() if k.endswith("anchors few")}
    assert len(set(few.values())) > len(few) / 2


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        GOLDEN.write_text(json.dumps(everything(Path(directory)), indent=1) + "\n")
