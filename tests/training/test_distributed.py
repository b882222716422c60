"""Two workers over gloo: equal collectives whatever a batch holds, and the gradient of one worker with everything."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from mgdet.structures import Batch, pad_targets
from mgdet.training.distributed import World
from mgdet.training.step import StepSums, accumulate_gradients
from tests import forked  # noqa: F401  # the fork server has imported torch
from tests.ranks import both
from tests.small import small_experiment

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
CLASSES = 3

pytestmark = pytest.mark.slow


def make_batch(seed, objects):
    """As many images as `objects` has numbers, each with so many objects."""
    g = torch.Generator().manual_seed(seed)
    boxes, labels = [], []
    for n in objects:
        corner = torch.rand(n, 2, generator=g) * 30
        boxes.append(torch.cat([corner, corner + 8 + torch.rand(n, 2, generator=g) * 24], dim=1))
        labels.append(torch.randint(0, CLASSES, (n,), generator=g))
    count = len(objects)
    size = torch.tensor([[64, 64]] * count)
    images = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=g)
    return Batch(images, size, size, pad_targets(boxes, labels), torch.arange(count), torch.arange(count))


# What each rank sees. Rank 1's first batch and rank 0's second one hold no object at all.
FIRST = (make_batch(0, (3, 1)), make_batch(1, (0, 0)))
SECOND = (make_batch(2, (0, 0)), make_batch(3, (2, 2)))


def concatenated(a, b):
    targets = pad_targets(
        [t.boxes[i][t.valid[i]] for t in (a.targets, b.targets) for i in range(len(t.boxes))],
        [t.labels[i][t.valid[i]] for t in (a.targets, b.targets) for i in range(len(t.boxes))],
    )
    joined = {n: torch.cat([v, getattr(b, n)]) for n, v in a.fields().items() if n != "targets"}
    return Batch(**joined, targets=targets)


FCOS = {
    "model": {"name": "fcos", "backbone": "mobilenet_v3_small", "norm": "gn", "channels": 32, "quality": "iou"},
    "assigner": {"name": "center_sampling"},
    "loss": {"cls": {"name": "quality_focal"}, "box": {"name": "giou"}},
}


def build(directory, **changes):
    torch.manual_seed(0)
    experiment = small_experiment(Path(directory), **changes)
    return experiment, experiment.model.build(CLASSES)


def gradients(network):
    return {n: p.grad.clone() for n, p in network.named_parameters()}


class Counting:
    """A communication hook that says how often gradients were exchanged."""

    def __init__(self) -> None:
        self.calls = 0

    def hook(self, state, bucket):
        self.calls += 1
        return allreduce_hook(None, bucket)


def observe_steps(seen, prefix, world, experiment, detector):
    """Gradients, exchanges and metrics of some steps go into `seen`."""
    network, counting = DistributedDataParallel(detector), Counting()
    network.register_comm_hook(None, counting.hook)

    def run(name, batches):
        detector.zero_grad(set_to_none=True)
        before = counting.calls
        sums = StepSums()
        accumulate_gradients(network, detector, batches, experiment, world, 0.0, sums)
        seen[name] = gradients(detector)
        seen[f"{name}, exchanges"] = counting.calls - before
        seen[f"{name}, metrics"] = sums.metrics(world)

    first, second = FIRST[world.rank], SECOND[world.rank]
    run(f"{prefix}warm", [second])  # DDP lays out its buckets anew after the first step
    run(f"{prefix}first", [first])
    run(f"{prefix}second", [second])
    run(f"{prefix}both", [first, second])


def worker(rank, directory):
    """One of two processes; what it saw goes to `rank-N.pt`, where the tests look at it."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    world = World.current(CPU)
    seen = {"place": (world.rank, world.size, world.is_main)}

    own = torch.tensor([float(rank), 10.0 + rank])
    seen["mean"], seen["own"] = world.mean(own), own
    seen["mean of a count"] = world.mean(torch.tensor(3 * rank))
    seen["gather"] = world.gather({"rank": rank, "list": list(range(rank))})
    seen["broadcast"] = world.broadcast(f"from {rank}")

    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(rank + 5)
    norm.num_batches_tracked.fill_(rank + 7)
    norm.weight.data.fill_(rank + 9)
    world.sync_buffers(norm)
    seen["norm"] = norm.state_dict()

    observe_steps(seen, "", world, *build(directory))
    observe_steps(seen, "fcos ", world, *build(directory, **FCOS))
    dist.barrier()
    torch.save(seen, f"{directory}/rank-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both processes saw. A collective that one of them misses ends here, not in a hang."""
    directory = tmp_path_factory.mktemp("two")
    return both(worker, directory, seconds=120)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same batches in this process: gradients and metrics for a list of micro-batches."""

    def run(batches, **changes):
        experiment, detector = build(tmp_path_factory.mktemp("one"), **changes)
        sums = StepSums()
        accumulate_gradients(detector, detector, batches, experiment, ALONE, 0.0, sums)
        return gradients(detector), sums.metrics(ALONE)

    return run


def assert_close(got, expected):
    assert got.keys() == expected.keys()
    for name in expected:
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(got[name], expected[name], atol=1e-4 * max(scale, 1e-3), rtol=1e-3, msg=name)


# --- World


def test_places(ranks):
    assert [r["place"] for r in ranks] == [(0, 2, True), (1, 2, False)]


def test_mean(ranks):
    for rank, seen in enumerate(ranks):
        assert seen["mean"].tolist() == [0.5, 10.5]
        assert float(seen["mean of a count"]) == 1.5
        assert seen["own"].tolist() == [rank, 10.0 + rank], "what was given is not changed"


def test_gather_and_broadcast(ranks):
    assert ranks[0]["gather"] == [{"rank": 0, "list": []}, {"rank": 1, "list": [0]}]
    assert ranks[1]["gather"] is None
    assert [r["broadcast"] for r in ranks] == ["from 0", "from 0"]


def test_sync_buffers_takes_rank_0s_buffers_and_leaves_parameters(ranks):
    for rank, seen in enumerate(ranks):
        assert seen["norm"]["running_mean"].tolist() == [5.0, 5.0]
        assert int(seen["norm"]["num_batches_tracked"]) == 7
        assert seen["norm"]["weight"].tolist() == [rank + 9.0] * 2


def test_a_single_worker_needs_no_process_group():
    world = World.current(CPU)
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    value, norm = torch.tensor([1.0, 2.0]), nn.BatchNorm2d(1)
    assert world.mean(value) is value
    assert world.gather("x") == ["x"]
    assert world.broadcast("x") == "x"
    world.sync_buffers(norm)


# --- steps


def test_the_inputs_are_what_these_tests_are_about():
    assert [int(b.targets.valid.sum()) for b in (*FIRST, *SECOND)] == [4, 0, 0, 4]
    assert FIRST[1].targets.boxes.shape[1] == 0


@pytest.mark.parametrize("name", ["first", "second", "both", "fcos first", "fcos second", "fcos both"])
def test_gradients_are_equal_on_both_ranks(ranks, name):
    for parameter, gradient in ranks[0][name].items():
        assert torch.equal(gradient, ranks[1][name][parameter]), parameter
    assert any((g != 0).any() for g in ranks[0][name].values())


@pytest.mark.parametrize(("name", "batches"), [("first", FIRST), ("second", SECOND)])
@pytest.mark.parametrize(("prefix", "changes"), [("", {}), ("fcos ", FCOS)], ids=["retinanet", "fcos"])
def test_two_workers_are_one_with_the_whole_batch(ranks, alone, prefix, changes, name, batches):
    """The quality branch of FCOS and its soft targets included."""
    name = prefix + name
    expected, metrics = alone([concatenated(*batches)], **changes)
    assert ("train/loss_quality" in metrics) == bool(changes)
    assert metrics["train/positives_loc"] * 4 > 2, "below one positive a worker the clamp makes a difference"
    assert_close(ranks[0][name], expected)
    for seen in ranks:
        assert seen[f"{name}, metrics"] == pytest.approx(metrics, rel=1e-4)


def test_the_comparison_can_fail(ranks, alone):
    """One worker's own batch has another gradient."""
    with pytest.raises(AssertionError):
        assert_close(ranks[0]["first"], alone([FIRST[0]])[0])


@pytest.mark.parametrize(("prefix", "changes"), [("", {}), ("fcos ", FCOS)], ids=["retinanet", "fcos"])
def test_micro_batches_of_two_workers_are_one_batch(ranks, alone, prefix, changes):
    """Four micro-batches, two of them without an object."""
    expected, metrics = alone([concatenated(concatenated(*FIRST), concatenated(*SECOND))], **changes)
    assert_close(ranks[0][f"{prefix}both"], expected)
    for seen in ranks:
        assert seen[f"{prefix}both, metrics"] == pytest.approx(metrics, rel=1e-4)


def test_gradients_are_exchanged_once_a_step(ranks):
    for seen in ranks:
        assert seen["first, exchanges"] > 0
        assert seen["both, exchanges"] == seen["first, exchanges"], "micro-batches before the last one stay at home"
