"""Order and sharding: permutations, exact partitions, pure functions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgdet.data.order import (
    WINDOW,
    EvalBatches,
    Segment,
    TrainBatches,
    epoch_order,
    eval_shard,
    images_seen,
    require_images,
    share_of,
    steps_per_epoch,
)
from mgdet.errors import ConfigError

GROUPS = st.lists(st.integers(1, 9), min_size=1, max_size=60)
SEED = st.integers(0, 2**31)


@given(GROUPS, SEED, st.integers(0, 500))
def test_epoch_order_is_a_pure_permutation(groups: list[int], seed: int, epoch: int) -> None:
    order = epoch_order(groups, seed, epoch)
    assert sorted(order.tolist()) == list(range(sum(groups)))
    assert order.tolist() == epoch_order(tuple(groups), seed, epoch).tolist()


def test_epoch_order_changes_with_seed_and_epoch() -> None:
    orders = {tuple(epoch_order([8] * 40, seed, epoch).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_epoch_order_reads_a_window_of_groups_at_a_time() -> None:
    size, groups = 8, 50
    order = epoch_order([size] * groups, 1, 2) // size
    for first in range(0, groups, WINDOW):
        window = order[first * size : (first + WINDOW) * size]
        assert len(set(window.tolist())) == min(WINDOW, groups - first)
        assert window.tolist() != sorted(window.tolist())


def test_epoch_order_of_nothing_is_empty() -> None:
    assert len(epoch_order([], 0, 0)) == 0


@given(st.lists(st.integers(0, 500), unique=True, min_size=1), st.integers(1, 9))
def test_shares_of_a_batch_partition_it_in_order_of_storage(rows: list[int], world: int) -> None:
    shares = [share_of(np.array(rows), world, rank).tolist() for rank in range(world)]
    together = [row for share in shares for row in share]
    assert together == (rows if world == 1 else sorted(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(0, 300), st.integers(1, 12))
def test_eval_shards_partition_the_split(num_images: int, world: int) -> None:
    shards = [eval_shard(num_images, world, rank) for rank in range(world)]
    assert [row for shard in shards for row in shard] == list(range(num_images))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def batches_of(groups: list[int], seed: int, world: int, batch: int, epoch: int = 0, step: int = 0, done=()):  # type: ignore[no-untyped-def]
    """The batches of each rank."""
    samplers = [TrainBatches(groups, batch_size=batch, seed=seed, world=world, rank=rank) for rank in range(world)]
    for sampler in samplers:
        sampler.start(epoch, step, done)
    ranks = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in ranks} == {len(sampler) for sampler in samplers}, "as many on every rank"
    return ranks


def together(ranks, step):  # type: ignore[no-untyped-def]
    """The images of a global batch, without pictures that only fill a place."""
    return sorted(key.position for batches in ranks for key in batches[step] if key.counts)


@given(GROUPS, SEED, st.integers(1, 4), st.integers(1, 7), st.integers(0, 3), st.data())
def test_train_batches(groups: list[int], seed: int, world: int, batch: int, epoch: int, data: st.DataObject) -> None:
    if batch > sum(groups) // world:
        with pytest.raises(ConfigError):
            TrainBatches(groups, batch_size=batch, seed=seed, world=world)
        return
    ranks = batches_of(groups, seed, world, batch, epoch)
    steps = steps_per_epoch(sum(groups), world, batch)
    assert {len(batches) for batches in ranks} == {steps}
    for step in range(steps):
        sizes = [sum(key.counts for key in batches[step]) for batches in ranks]
        assert max(sizes) - min(sizes) <= 1
        assert step + 1 == steps or sizes == world * [batch]
        assert all(batches[step] for batches in ranks), "no rank is without a picture"
    keys = [key for batches in ranks for b in batches for key in b]
    assert {key.epoch for key in keys} == {epoch}
    assert sorted(key.position for key in keys if key.counts) == list(range(sum(groups))), "each image once"
    step = data.draw(st.integers(0, steps))
    assert batches_of(groups, seed, world, batch, epoch, step)[0] == ranks[0][step:]


@given(GROUPS, SEED, st.integers(0, 3))
def test_every_number_of_ranks_sees_the_same_global_batches(groups: list[int], seed: int, epoch: int) -> None:
    worlds = [world for world in (1, 2, 3, 4) if sum(groups) >= 12]
    found = [batches_of(groups, seed, world, 12 // world, epoch) for world in worlds]
    for ranks, world in zip(found, worlds, strict=True):
        assert len(ranks[0]) == len(found[0][0]) == steps_per_epoch(sum(groups), world, 12 // world)
        for step in range(len(ranks[0])):
            assert together(ranks, step) == together(found[0], step)


@given(GROUPS, SEED, st.integers(0, 3), st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=5), st.data())
def test_ranks_that_change_in_mid_epoch_change_no_global_batch(
    groups: list[int], seed: int, epoch: int, worlds: list[int], data: st.DataObject
) -> None:
    if sum(groups) < 12:
        return
    straight = batches_of(groups, seed, 1, 12, epoch)
    done: list[Segment] = []
    at = 0
    for world in worlds:
        ranks = batches_of(groups, seed, world, 12 // world, epoch, 0, done)
        assert at + len(ranks[0]) == len(straight[0])
        steps = data.draw(st.integers(0, len(ranks[0])))
        assert [together(ranks, step) for step in range(steps)] == [
            together(straight, at + step) for step in range(steps)
        ]
        done.append(Segment(world, 12 // world, steps))
        at += steps


@given(GROUPS, SEED, st.integers(0, 3), st.data())
def test_each_image_comes_once_whatever_the_ranks_and_batches_were(
    groups: list[int], seed: int, epoch: int, data: st.DataObject
) -> None:
    total, done, seen = sum(groups), [], []
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=4))
    sizes = [(world, batch) for world, batch in sizes if batch <= total // world]
    for i, (world, batch) in enumerate(sizes):
        ranks = batches_of(groups, seed, world, batch, epoch, 0, done)
        steps = len(ranks[0])
        if i + 1 < len(sizes):
            steps = data.draw(st.integers(0, steps))
        seen += [row for step in range(steps) for row in together(ranks, step)]
        done.append(Segment(world, batch, steps))
        assert images_seen(total, done) == len(seen)
    assert not sizes or sorted(seen) == list(range(total))


def test_ranks_read_few_row_groups_of_a_window_each() -> None:
    """Sixteen groups in a window: four ranks that shared batches at random would read 64 of them, together."""
    ranks = batches_of(2 * WINDOW * [32], 0, 4, 8)
    steps = len(ranks[0]) // 2
    read = [len({key.position // 32 for b in batches[:steps] for key in b}) for batches in ranks]
    assert sum(read) <= 2 * WINDOW


@pytest.mark.parametrize(
    ("num_images", "world", "batch", "says"),
    [(3, 4, 1, "at most 3 workers"), (10, 2, 6, "1 to 5"), (0, 1, 1, "too few")],
)
def test_too_few_images(num_images: int, world: int, batch: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        require_images(num_images, world, batch)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"world": 0}, {"rank": 1}, {"rank": -1}, {"seed": -1}])
def test_impossible_numbers(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="allowed are"):
        TrainBatches([8], **({"batch_size": 2, "seed": 0} | wrong))


@pytest.mark.parametrize(("epoch", "step"), [(0, 5), (0, -1), (-1, 0)])
def test_impossible_start(epoch: int, step: int) -> None:
    with pytest.raises(ConfigError, match="4 steps"):
        TrainBatches([8], batch_size=2, seed=0).start(epoch, step)


@given(st.integers(0, 40), st.integers(1, 6), st.integers(1, 5))
def test_eval_batches_cover_every_row_once(num_images: int, world: int, batch: int) -> None:
    samplers = [EvalBatches(num_images, batch_size=batch, world=world, rank=rank) for rank in range(world)]
    assert [row for sampler in samplers for b in sampler for row in b] == list(range(num_images))
    assert [len(list(sampler)) for sampler in samplers] == [len(sampler) for sampler in samplers]
