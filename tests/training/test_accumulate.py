"""`train.accumulate` saves memory and changes nothing else: the gradient of the micro-batches is that of one batch."""

import itertools

import pytest
import torch
from torch.nn.functional import dropout

from mgdet.data.collate import Collate
from mgdet.data.loader import EvalImages
from mgdet.structures import Batch, pad_targets
from mgdet.training.distributed import World
from mgdet.training.generators import generator_state
from mgdet.training.step import StepSums, accumulate_gradients, forward
from tests.small import small_experiment

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
CLASSES = 6
SIDE = 64


def images(seed, objects):
    """A batch of as many images as `objects` has numbers, each with so many objects."""
    g = torch.Generator().manual_seed(seed)
    corners = [torch.rand(n, 2, generator=g) * 30 for n in objects]
    boxes = [torch.cat([c, c + 8 + torch.rand(len(c), 2, generator=g) * 24], dim=1) for c in corners]
    labels = [torch.randint(CLASSES, (n,), generator=g) for n in objects]
    pixels = torch.randint(256, (len(objects), 3, SIDE, SIDE), dtype=torch.uint8, generator=g)
    size = torch.tensor([[SIDE, SIDE]] * len(objects))
    return Batch(pixels, size, size, pad_targets(boxes, labels), torch.arange(len(objects)), torch.arange(len(objects)))


def build(tmp_path, **changes):
    torch.manual_seed(0)
    experiment = small_experiment(tmp_path, **changes)
    network = experiment.model.build(CLASSES).train()
    torch.nn.init.normal_(network.class_layers[0].weight, std=0.1)  # scores that differ, as those of a trained network
    return experiment, network


def gradient(tmp_path, groups, **changes):
    """The whole gradient of these micro-batches in one step, and the step's metrics."""
    experiment, network = build(tmp_path, **changes)
    sums = StepSums()
    accumulate_gradients(network, network, groups, experiment, ALONE, 2.0, sums)
    return torch.cat([p.grad.flatten().double() for p in network.parameters() if p.grad is not None]), sums.metrics(
        ALONE
    )


def same(found, expected):
    ratio = float(found.norm() / expected.norm())
    assert ratio == pytest.approx(1, abs=5e-4)
    assert float(torch.cosine_similarity(found, expected, 0)) == pytest.approx(1, abs=5e-4)


FCOS = {
    "model": {"name": "fcos", "backbone": "mobilenet_v3_small", "norm": "gn", "channels": 32, "quality": "iou"},
    "assigner": {"name": "mutual_labeling"},
    "loss": {"cls": {"name": "quality_focal"}, "box": {"name": "giou", "weighted_by": "score"}},
}
MAX_IOU = {"assigner": {"name": "max_iou"}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objects", "cuts"),
    [
        ((1, 25), (1,)),
        ((1, 1, 25), (2,)),
        ((0, 12, 0, 3), (1, 2, 3)),
        ((2, 0, 0, 9, 1), (2, 4)),
        ((0, 0), (1,)),
    ],
    ids=["1 + 25 objects", "2 images + a last one", "micro-batches without objects", "incomplete last", "no object"],
)
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(MAX_IOU, id="max_iou", marks=pytest.mark.exhaustive),
        pytest.param({}, id="mutual_guidance", marks=pytest.mark.exhaustive),
        pytest.param(FCOS, id="fcos"),  # labels, weights and normalisers depend on the predictions
    ],
)
def test_micro_batches_have_the_gradient_of_one_batch(tmp_path, objects, cuts, changes):
    """Labels, weights and normalisers that depend on the predictions included."""
    whole = images(sum(objects), objects)
    ends = (0, *cuts, len(objects))
    parts = [whole[a:b] for a, b in itertools.pairwise(ends)]
    expected, metrics = gradient(tmp_path, [whole], **changes)
    found, in_parts = gradient(tmp_path, parts, **changes)
    same(found, expected)
    assert in_parts == pytest.approx(metrics, rel=1e-3)


def test_the_comparison_can_fail(tmp_path):
    """Micro-batches that are normalised each by itself, and averaged, have another gradient."""
    whole = images(26, (1, 25))
    expected = gradient(tmp_path, [whole], **MAX_IOU)[0]
    alone = [gradient(tmp_path, [whole[i : i + 1]], **MAX_IOU)[0] for i in (0, 1)]
    with pytest.raises(AssertionError):
        same((alone[0] + alone[1]) / 2, expected)


@pytest.mark.slow
def test_images_of_a_data_set(tmp_path):
    """As a training sees them: decoded, resized, collated."""
    from mgdet.data.dataset import ShardedDataset
    from mgdet.data.shapes import ensure_shapes

    experiment = small_experiment(tmp_path)
    ensure_shapes(experiment.data.uri, experiment.data.generate)
    source = EvalImages(ShardedDataset(experiment.data.uri, "train"), experiment.data.transform)

    def batches(groups):
        return [Collate(32)([source[i] for i in group]) for group in groups]

    expected = gradient(tmp_path, batches([range(6)]))[0]
    same(gradient(tmp_path, batches([(0, 1, 2, 3), (4, 5)]))[0], expected)


def test_a_term_without_a_normaliser_counts_by_images(tmp_path):
    """The correlation of each micro-batch's own positives, in proportion to its images."""
    changes = {**MAX_IOU, "loss": {"cls": {"weight": 0}, "box": {"weight": 0}, "correlation": {"weight": 1.0}}}
    whole = images(3, (6, 5, 4))
    first, last = (gradient(tmp_path, [part], **changes)[0] for part in (whole[:2], whole[2:]))
    assert float(first.norm()) > 0 < float(last.norm())
    same(gradient(tmp_path, [whole[:2], whole[2:]], **changes)[0], (2 * first + last) / 3)


@pytest.mark.slow
def test_running_averages_see_each_micro_batch_once(tmp_path):
    model = {"name": "retinanet", "backbone": "resnet18", "norm": "bn", "channels": 32}
    parts = [images(0, (1, 2)), images(1, (3, 0)), images(2, (2, 2))]
    experiment, network = build(tmp_path, model=model)
    accumulate_gradients(network, network, parts, experiment, ALONE, 2.0, StepSums())
    plain = build(tmp_path, model=model)[1]
    for part in parts:
        forward(plain, plain, part, experiment, ALONE, 2.0)
    for (name, found), expected in zip(network.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(found, expected), name


@pytest.mark.slow
def test_both_passes_of_a_micro_batch_draw_the_same_numbers(tmp_path):
    """Dropout and stochastic depth drop the same values when the labels are found and when they are learned from."""
    experiment, network = build(tmp_path)
    seen = []

    def drop(module, inputs, maps):
        dropped = {level: dropout(m, 0.5) for level, m in maps.items()}
        seen.append(dropped["0"].detach())
        return dropped

    network.backbone.register_forward_hook(drop)
    parts = [images(0, (1,)), images(1, (2,)), images(2, (3,))]
    torch.manual_seed(5)
    accumulate_gradients(network, network, parts, experiment, ALONE, 2.0, StepSums())
    assert len(seen) == 5, "two micro-batches twice, and the first once"
    assert torch.equal(seen[0], seen[3])
    assert torch.equal(seen[1], seen[4])
    after = generator_state(CPU)
    torch.manual_seed(5)
    for part in (parts[1], parts[2], parts[0]):
        forward(network, network, part, experiment, ALONE, 2.0)
    assert torch.equal(after["torch"], generator_state(CPU)["torch"]), "replayed numbers are not drawn again"
