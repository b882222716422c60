"""A training that was stopped and resumed is the training that was not, bit for bit."""

import pytest
import torch

from mgdet.assign import MaxIoU, MutualLabeling
from mgdet.errors import CheckpointError
from mgdet.runs.launch import prepare
from mgdet.tracking import NullTracker
from mgdet.training.checkpoint import CheckpointStore, read_checkpoint
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from mgdet.training.origin import tell_other_evaluation
from tests.small import STATEFUL, small_experiment

CPU = World(0, 1, torch.device("cpu"))


class Stopped(Exception):
    """The machine goes away."""


def train(experiment, stop_after_step=None):
    """Run to the end, or to just after an optimizer step; returns the worker."""
    worker = Worker(experiment, CPU, NullTracker())
    if stop_after_step is not None:
        step = worker._step

        def interrupted(group, sums):
            if worker.position.step == stop_after_step:
                raise Stopped
            return step(group, sums)

        worker._step = interrupted
        with pytest.raises(Stopped):
            worker.run()
    else:
        worker.run()
    return worker


def stateful(directory):
    """An experiment whose checkpoints hold everything that they can."""
    changes = {
        "train__checkpoint_every_steps": 2,
        "data__transform__hflip": 0.5,
        "data__transform__augment": {"mosaic": {}, "photometric": {}, "expand": {}, "crop": {}},  # mosaic: one epoch
        "data__transform__multi_scale": {"factors": [0.5, 1.0]},
        "assigner": {"name": "mutual_labeling", "warmup_epochs": 1.3},  # another assigner takes over in mid-epoch
        **STATEFUL,
    }
    return prepare(small_experiment(directory, **changes), cpus=1, gpus=0)[0]


@pytest.fixture
def experiment(tmp_path):
    return stateful(tmp_path)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The training that nothing stopped."""
    return train(stateful(tmp_path_factory.mktemp("straight")))


TIERS = {2: pytest.mark.exhaustive, 3: (), 4: pytest.mark.exhaustive, 5: pytest.mark.slow}
STOPS = [pytest.param(stop, marks=tier) for stop, tier in TIERS.items()]


@pytest.mark.slow
@pytest.mark.parametrize("stop", STOPS, ids=lambda s: f"stopped before step {s}")
def test_resumed_equals_straight(experiment, straight, stop):
    """Three steps an epoch, a checkpoint at every second step and each epoch's end: stops fall in mid-epoch too."""
    train(experiment, stop_after_step=stop)
    resumed = train(experiment)
    assert resumed.position == straight.position
    for mine, theirs in ((resumed.detector, straight.detector), (resumed.ema.module, straight.ema.module)):
        for (name, a), (_, b) in zip(mine.state_dict().items(), theirs.state_dict().items(), strict=True):
            assert torch.equal(a, b), name


@pytest.mark.slow
def test_the_assigner_changes_at_its_epoch(experiment, monkeypatch):
    used = []

    def noted(self, *args, _assign=MutualLabeling.assign):
        used.append(self.name)
        return _assign(self, *args)

    monkeypatch.setattr(MutualLabeling, "assign", noted)
    monkeypatch.setattr(MaxIoU, "assign", lambda *args, _assign=MaxIoU.assign: used.append("max_iou") or _assign(*args))
    train(experiment)  # epochs done before each step: 0, 1/3, 2/3, 1, 4/3, 5/3
    assert used == ["max_iou"] * 4 + ["mutual_labeling"] * 2


@pytest.mark.exhaustive
def test_the_comparison_can_fail(experiment, straight):
    """Another seed gives other weights: the equality above is not that of constants."""
    other = train(experiment.model_copy(update={"seed": 1}))
    pairs = zip(straight.detector.parameters(), other.detector.parameters(), strict=True)
    assert not all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(experiment, caplog):
    train(experiment, stop_after_step=5)
    store = CheckpointStore(experiment.run_uri)
    newest = store.committed()[-1]
    with open(store.path(newest).path, "r+b") as file:
        file.truncate(newest.size // 2)
    info, state = store.latest()
    assert info.step < newest.step
    assert state["position"]["step"] == info.step
    assert "damaged" in caplog.text


@pytest.mark.slow
def test_an_uncommitted_checkpoint_is_not_seen(straight):
    store = straight.store
    before = [i.file for i in store.committed()]
    with open((store.directory / "step-99999999.pt").path, "wb") as file:
        file.write(b"half")
    assert [i.file for i in store.committed()] == before


@pytest.mark.slow
def test_checkpoint_holds_what_it_promises(straight):
    store = straight.store
    state = read_checkpoint(store.path(store.committed()[-1]).path, "newest")
    assert state.keys() == {
        "model", "ema", "optimizer", "scaler", "schedule", "position", "generators",
        "config", "categories", "data", "made_by", "format",
    }  # fmt: skip
    assert "sigma: 2.0" in state["config"]
    assert state["position"]["epoch"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"generators": None},
        {"generators": [{"torch": torch.zeros(3), "python": "[]"}]},
        {"generators": [{"torch": torch.get_rng_state(), "python": 10_000 * "["}]},
        {"optimizer": []},
        {"position": {"step": -1}},
        {"ema": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_state_that_could_not_have_been_written_is_refused(straight, changes):
    state = read_checkpoint(straight.store.path(straight.store.committed()[-1]).path, "newest")
    before = torch.get_rng_state()
    with pytest.raises(CheckpointError, match="of another model"):
        straight.load_state_dict({k: v for k, v in {**state, **changes}.items() if v is not None})
    torch.set_rng_state(before)


@pytest.mark.slow
def test_other_rules_of_evaluation_are_told(straight, caplog):
    """They do not decide the weights, so that a run may go on with them."""
    state = read_checkpoint(straight.store.path(straight.store.committed()[-1]).path, "newest")
    now = straight.experiment
    tell_other_evaluation(now, state)
    tell_other_evaluation(now, {"config": "name: x"})
    faster = now.evaluation.model_copy(update={"backend": "pycocotools"})
    tell_other_evaluation(now.model_copy(update={"evaluation": faster}), state)
    assert caplog.text == ""
    other = now.evaluation.model_copy(update={"protocol": "voc12"})
    tell_other_evaluation(now.model_copy(update={"evaluation": other}), state)
    assert "evaluation.protocol was coco up to the newest checkpoint and is voc12 now" in caplog.text


@pytest.mark.slow
def test_best_and_latest_are_kept(tmp_path):
    store = CheckpointStore(str(tmp_path), keep_best=1)
    for step, score in enumerate([0.1, 0.5, 0.3, 0.2, 0.4]):
        store.save({"model": {}}, step=step, epoch=step, metrics={"val/AP": score})
    assert [i.step for i in store.committed()] == [1, 3, 4]
    assert store.best().step == 1


@pytest.mark.slow
def test_a_full_disk_costs_no_checkpoint_that_was_there(tmp_path, monkeypatch):
    from mgdet.storage import Location
    from mgdet.training import checkpoint

    store = CheckpointStore(str(tmp_path))
    store.save({"model": {}}, step=1, epoch=1, metrics={})
    monkeypatch.setattr(checkpoint.time, "sleep", lambda s: None)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Location, "open_output", full)
    with pytest.raises(CheckpointError, match="No space left"):
        store.save({"model": {}}, step=2, epoch=2, metrics={})
    assert [i.step for i in store.committed()] == [1]


@pytest.mark.slow
def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="read safely"):
        read_checkpoint(tmp_path / "evil.pt", "evil.pt")
    assert not (tmp_path / "ran").exists()
