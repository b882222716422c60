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
    images_per_rank,
    steps_per_epoch,
    train_shard,
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


@given(st.integers(1, 300), st.integers(1, 9), SEED)
def test_train_shards_are_disjoint_and_equal(num_images: int, world: int, seed: int) -> None:
    order = epoch_order([num_images], seed, 0)
    shards = [train_shard(order, world, rank) for rank in range(world)]
    assert {len(s) for s in shards} == {num_images // world}
    rows = np.concatenate(shards)
    assert len(set(rows.tolist())) == len(rows) > num_images - world


@given(st.integers(0, 300), st.integers(1, 12))
def test_eval_shards_partition_the_split(num_images: int, world: int) -> None:
    shards = [eval_shard(num_images, world, rank) for rank in range(world)]
    assert [row for shard in shards for row in shard] == list(range(num_images))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@given(GROUPS, SEED, st.integers(1, 4), st.integers(1, 7), st.integers(0, 3), st.data())
def test_train_batches(groups: list[int], seed: int, world: int, batch: int, epoch: int, data: st.DataObject) -> None:
    n = sum(groups) // world
    if batch > n:
        with pytest.raises(ConfigError):
            TrainBatches(groups, batch_size=batch, seed=seed, world=world)
        return
    samplers = [TrainBatches(groups, batch_size=batch, seed=seed, world=world, rank=rank) for rank in range(world)]
    for sampler in samplers:
        sampler.start(epoch)
    ranks = [list(sampler) for sampler in samplers]
    steps = steps_per_epoch(sum(groups), world, batch)
    assert {len(batches) for batches in ranks} == {steps} == {len(sampler) for sampler in samplers}
    for i in range(steps):  # also the last, partial batch is as large on every rank
        assert len({len(batches[i]) for batches in ranks}) == 1
    keys = [key for batches in ranks for b in batches for key in b]
    assert {key.epoch for key in keys} == {epoch}
    assert len({key.position for key in keys}) == len(keys) == n * world
    step = data.draw(st.integers(0, steps))
    samplers[0].start(epoch, step)
    assert list(samplers[0]) == ranks[0][step:]
    assert len(samplers[0]) == steps - step


@given(GROUPS, SEED, st.integers(0, 3), st.data())
def test_each_image_comes_once_whatever_the_ranks_were(
    groups: list[int], seed: int, epoch: int, data: st.DataObject
) -> None:
    """The number of ranks changes several times within an epoch; fewer than the last number of ranks are left out."""
    total, done, seen = sum(groups), [], []
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=4))
    sizes = [(world, batch) for world, batch in sizes if batch <= total // world]
    for i, (world, batch) in enumerate(sizes):
        samplers = [TrainBatches(groups, batch_size=batch, seed=seed, world=world, rank=r) for r in range(world)]
        for sampler in samplers:
            sampler.start(epoch, 0, done)
        ranks = [list(sampler) for sampler in samplers]
        steps = len(ranks[0])
        assert {len(batches) for batches in ranks} == {steps} == {len(sampler) for sampler in samplers}
        if i + 1 < len(sizes):
            steps = data.draw(st.integers(0, steps))
        seen += [key.position for batches in ranks for b in batches[:steps] for key in b]
        done.append(Segment(world, batch, steps))
    assert len(set(seen)) == len(seen) <= total
    assert not sizes or total - len(seen) < sizes[-1][0]


def test_all_images_take_part_over_the_epochs() -> None:
    seen = set()
    for epoch in range(30):
        seen |= {int(row) for rank in range(3) for row in train_shard(epoch_order([4] * 7, 0, epoch), 3, rank)}
    assert seen == set(range(28))
    assert steps_per_epoch(28, 3, 3) == 3


@pytest.mark.parametrize(
    ("num_images", "world", "batch", "says"),
    [(3, 4, 1, "at most 3 workers"), (10, 2, 6, "1 to 5"), (0, 1, 1, "too few")],
)
def test_too_few_images(num_images: int, world: int, batch: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        images_per_rank(num_images, world, batch)


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
