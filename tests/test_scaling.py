"""The model of `benchmarks/scaling.py` against simulations and brute force, and its commands."""

import json
import math
import random
import statistics
from pathlib import Path

import pytest
import yaml

with pytest.MonkeyPatch.context() as patch:  # as for a script that is started there
    patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import scaling
    import scaling_inputs as _  # noqa: F401  # found there only now
    import scaling_model as model

EXAMPLE = Path(__file__).parents[1] / "benchmarks" / "scaling_example.yaml"
NETWORK = model.NETWORKS["ethernet-100g"]


@pytest.fixture(scope="module")
def example():
    return scaling.read_inputs(EXAMPLE)


def flawless(example, **changes):
    """Inputs in which nothing is lost but what `changes` bring."""
    none = {
        "fixed_s": 0.0,
        "deviation_s": 0.0,
        "gradient_bytes": 1,
        "loader_images_per_s": 1e9,
        "evaluation_alone_s": 0.0,
        "evaluation_image_s": 0.0,
        "save_stall_s": 0.0,
        "save_write_s": 0.0,
        "restart_s": 0.0,
        "gpu_hours_per_fault": 1e12,
        "largest_batch": 1 << 20,
    }
    return example.model_copy(update=none | changes)


def simulated_exchange(sizes, times, backward, overlap):
    """What a step waits, by a clock in small ticks: gradients come evenly, and one exchange runs at a time."""
    tick, now, computed, current, left, waiting = backward / 20_000, 0.0, 0.0, 0, None, list(times)
    while current < len(sizes):
        complete = computed >= sum(sizes[: current + 1]) / sum(sizes) - 1e-9
        if left is None and complete and now >= (1 - overlap) * backward - tick / 2:
            left = waiting[current]
        now += tick
        computed = min(1.0, now / backward)
        if left is not None:
            left -= tick
            if left <= 1e-12:
                current, left = current + 1, None
    return max(0.0, now - backward)


def test_what_a_step_waits_for_gradients_is_that_of_a_simulation():
    draw = random.Random(0)
    for _ in range(6):
        sizes = [draw.randint(1, 30) for _ in range(draw.randint(1, 6))]
        times = [draw.choice([0.0, 0.02, 0.1]) * draw.random() * 4 for _ in sizes]
        overlap = draw.choice([0.0, 0.5, 1.0])
        found = model.exposed_s(sizes, times, 0.2, overlap)
        assert found == pytest.approx(simulated_exchange(sizes, times, 0.2, overlap), abs=2e-4)


@pytest.mark.parametrize("size", [1, 1 << 20, (1 << 20) + 1, 26 << 20, 151_000_000])
def test_buckets_hold_all_gradients(size):
    found = model.buckets(size)
    assert sum(found) == size
    assert found[0] <= model.FIRST_BUCKET
    assert all(0 < n <= model.BUCKET for n in found)


def test_the_interval_of_checkpoints_loses_the_least():
    """By trying: Daly's exact expected time of a training, his equation 20 with restarts of no time."""
    for cost, between in ((0.1, 3600.0), (5.0, 3600.0), (60.0, 4000.0)):

        def expected(every, cost=cost, between=between):
            return between * math.expm1((every + cost) / between) / every

        best = min((expected(k), k) for k in (between * 1.02**n for n in range(-800, 100)))[1]
        assert expected(model.daly_interval_s(cost, between)) == pytest.approx(expected(best), rel=1e-4)
        assert model.daly_interval_s(cost, between) == pytest.approx(best, rel=0.1)
    assert model.daly_interval_s(10.0, 4.0) == 4.0


def test_the_slowest_of_some_ranks():
    draw = random.Random(0)
    for ranks in (2, 8, 64):
        slowest = statistics.fmean(max(draw.gauss(0, 1) for _ in range(ranks)) for _ in range(2000))
        assert model.slowest_s(1.0, ranks) == pytest.approx(slowest, abs=0.08)
    assert model.slowest_s(1.0, 1) == 0


def test_costs_of_an_exchange_by_hand():
    """Two GPUs send half of the bytes twice; a large message fills the wire, a small one only waits."""
    assert model.all_reduce_s(100.0, 2, 0.0, 10.0) == 10.0
    assert model.all_reduce_s(0.0, 4, 1.0, 1.0) == 4.0  # two trees: up and down two levels; the ring takes 6
    assert model.all_reduce_s(1e9, 1024, 1e-5, 1e10) < 0.25
    assert model.all_reduce_s(1e9, 1, 1.0, 1.0) == 0
    within = model.exchange_s(1e8, 8, NETWORK)
    assert model.exchange_s(1e8, 16, NETWORK) == pytest.approx(within + 1e8 / (100e9 / 8 * 0.7) + 2 * 30e-6)


def test_one_gpu_that_waits_for_nothing_does_what_was_measured(example):
    found = model.predict(flawless(example), 1, NETWORK)
    assert found.images_per_s == pytest.approx(2 / 0.2)
    assert found.useful == pytest.approx(1)
    assert found.bottleneck == "none"


@pytest.mark.parametrize("gpus", [1, 2, 8, 60, 1024, 5000])
def test_shares_add_up(example, gpus):
    for network in model.NETWORKS.values():
        found = model.predict(example, gpus, network, storage_bytes_per_s=1e8)
        assert found.useful + sum(found.lost.values()) == pytest.approx(1)
        assert min(found.lost.values()) >= 0
        assert found.batch <= example.largest_batch
        assert found.gpu_hours == pytest.approx(found.hours * gpus)


@pytest.mark.parametrize(
    ("changes", "gpus", "name"),
    [
        ({"loader_images_per_s": 5.0}, 1, "loader"),
        ({"image_bytes": 1e7}, 64, "storage"),
        ({"gradient_bytes": 10**9}, 64, "gradient exchange"),
        ({"deviation_s": 0.1}, 64, "slowest GPU"),
        ({"evaluation_alone_s": 600.0}, 64, "evaluation"),
        ({"save_stall_s": 30.0, "gpu_hours_per_fault": 3000.0}, 64, "faults and checkpoints"),
        ({"restart_s": 600.0, "gpu_hours_per_fault": 1000.0}, 64, "faults and checkpoints"),
        ({"largest_batch": 64, "fixed_s": 0.1}, 64, "small batch per GPU"),
        ({"largest_batch": 64}, 256, "idle, batch too small"),
    ],
)
def test_the_bottleneck_is_named(example, changes, gpus, name):
    assert model.predict(flawless(example, **changes), gpus, NETWORK, storage_bytes_per_s=1e9).bottleneck == name


def test_faults_grow_with_the_cluster(example):
    small, large = (model.predict(example, n, NETWORK) for n in (8, 1024))
    assert small.fault_per_hour == pytest.approx(8 / 50_700, rel=1e-3)
    assert large.fault_per_hour == pytest.approx(1 - math.exp(-1024 / 50_700))
    assert large.checkpoint_every_s < small.checkpoint_every_s


def test_the_table_says_what_was_assumed(example, capsys):
    assert scaling.main(["predict", str(EXAMPLE), "--gpus", "1", "1024", "--price", "2"]) == 0
    said = capsys.readouterr().out
    assert "\n1,024  128" in said
    assert said.count("ASSUMED") == len(example.assumed) + 1
    assert "assumption: 8 GPUs" in said


def test_a_prediction_is_compared_with_runs(tmp_path, capsys, monkeypatch, example):
    run = tmp_path / "two"
    run.mkdir()
    rates = [1.0, 18.0, 20.0, 22.0]
    lines = [{"step": n, "time": 1.0, "metrics": {"train/images_per_s": v}} for n, v in enumerate(rates)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    from mgdet.training.checkpoint import CheckpointStore

    monkeypatch.setattr(CheckpointStore, "latest", lambda store: (None, {"generators": [{}, {}]}))
    inputs = tmp_path / "inputs.yaml"
    inputs.write_text(yaml.safe_dump(flawless(example).model_dump()))
    assert scaling.main(["check", str(inputs), str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["two", "2", "19.99", "20.00", "1.00"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", str(EXAMPLE), "--network", "token-ring"], "expected a YAML file, or one of ethernet-10g"),
        (["predict", str(EXAMPLE), "--gpus", "0"], "expected numbers from 1"),
        (["predict", str(EXAMPLE), "--storage", "0"], "more than 0"),
        (["predict", "missing.yaml"], "missing.yaml"),
        (["check", str(EXAMPLE), "missing"], "expected the directory of a training"),
        (["network"], "start it with torchrun"),
    ],
)
def test_what_cannot_be_predicted_is_refused(arguments, message, capsys, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert scaling.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_inputs_that_name_an_unknown_assumption_are_refused(tmp_path, example, capsys):
    file = tmp_path / "inputs.yaml"
    file.write_text(yaml.safe_dump(example.model_dump() | {"assumed": {"speed": "a guess"}}))
    assert scaling.main(["predict", str(file)]) == 2
    assert "assumed names speed" in capsys.readouterr().err
