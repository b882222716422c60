"""Evaluations aside: the numbers of those by the workers, while training goes on."""

import json
import logging
import threading
from concurrent.futures import Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from mgdet.cluster.train import run
from mgdet.errors import CheckpointError, ClusterError, DataError, Interrupted
from mgdet.inference.aside import answer
from mgdet.runs.launch import prepare, worker_tracker
from mgdet.runs.record import summarise
from mgdet.runs.status import status_of
from mgdet.tracking import NullTracker
from mgdet.training import evaluations
from mgdet.training.checkpoint import LAST_ATTEMPTS, CheckpointStore
from mgdet.training.distributed import World
from mgdet.training.evaluations import MOST_WAITING, Answer, Aside, Judge, Judged
from mgdet.training.loop import Worker
from mgdet.training.position import Position
from tests.faults import same, weights
from tests.small import small_experiment

CPU = World(0, 1, torch.device("cpu"))
EPOCHS = 9


@pytest.fixture(scope="module")
def process():
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        yield pool


class Elsewhere(Judge):
    """Evaluates in a process that several tests share; waits for `gate` before each."""

    def __init__(self, process, experiment, gate=None):
        self.process, self.experiment, self.gate = process, experiment, gate

    def ask(self, path):
        if self.gate:
            self.gate.wait(60)
        return self.process.submit(answer, path, self.experiment, CPU.device).result()

    def close(self):
        if self.gate:
            self.gate.set()


class Fake(Judge):
    """Answers with `outcomes`, one after another."""

    def __init__(self, *outcomes):
        self.outcomes, self.asked, self.closed = list(outcomes), [], False

    def ask(self, path):
        self.asked.append(path)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            return outcome
        if isinstance(outcome, threading.Event):
            outcome.wait(60)
            outcome = 0.5
        return Judged({"val/AP": outcome}, 1.0, {}, (), None, None)

    def close(self):
        self.closed = True


class Log(NullTracker):
    def __init__(self):
        self.lines = []

    def log(self, metrics, step):
        self.lines.append((step, metrics["val/AP"]))


def save(store, step):
    store.save({"model": {"w": torch.ones(2)}}, step=step, epoch=step, metrics={}, pending=True)


def finish(aside, deliver=lambda answer: None):
    """Wait for all evaluations, and until they are recorded."""
    aside.until(0, deliver, lambda: False)
    aside.finish()


def asked(judge, store, steps, log=None):
    """What asks `judge` for the evaluation of checkpoints of `store`, which it saves."""
    aside = Aside(judge, CPU, store, log or Log(), None, EPOCHS)
    for step in steps:
        save(store, step)
        aside.saved(Position(epoch=step, step=step), None)
    return aside


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(str(tmp_path / "run"))


def evaluated(experiment):
    """The metrics of each step in the journal; of none twice."""
    lines = [json.loads(line) for line in (path_of(experiment) / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], line["metrics"]) for line in lines if "val/seconds" in line["metrics"]]
    assert len({step for step, _ in found}) == len(found)
    timed = ("time/", "val/seconds", "epoch")
    return {step: {k: v for k, v in values.items() if not k.startswith(timed)} for step, values in found}


def has_checkpoint(experiment, epoch=1):
    """Asks for a stop once there is a checkpoint of that epoch."""
    return lambda: any(i.epoch == epoch for i in CheckpointStore(experiment.run_uri).committed())


def path_of(experiment):
    return Path(experiment.run_uri)


def test_answers_come_in_order_with_the_step_they_belong_to(store):
    log = Log()
    aside = asked(Fake(0.2, 0.4, 0.3), store, (1, 2, 3), log)
    got = []
    finish(aside, got.append)
    assert got == [Answer(n, n, {"val/AP": value}) for n, value in ((1, 0.2), (2, 0.4), (3, 0.3))]
    assert log.lines == [(1, 0.2), (2, 0.4), (3, 0.3)]
    assert [(i.step, i.metrics, i.pending) for i in store.committed()] == [
        (2, {"val/AP": 0.4}, False),
        (3, {"val/AP": 0.3}, False),
    ], "the best and the two latest are kept, once they are evaluated"
    assert aside.take() == ([], 0)


def test_a_checkpoint_is_kept_until_it_is_evaluated(store):
    gate = threading.Event()
    aside = asked(Fake(gate, 0.1, 0.1, 0.1, 0.1), store, (1, 2, 3, 4, 5))
    assert [i.step for i in store.committed()] == [1, 2, 3, 4, 5]
    gate.set()
    finish(aside)
    assert [i.step for i in store.committed()] == [1, 4, 5], "the best, of 0.5, and the two latest"
    assert b"pending" not in (store.directory / "step-00000005.json").read_bytes(), "as earlier versions know it"


def test_it_waits_until_few_are_under_way_and_can_be_stopped_then(store):
    gate = threading.Event()
    aside = asked(Fake(gate, 0.1, 0.1), store, (1, 2, 3))
    with pytest.raises(Interrupted, match="with 3 evaluations under way"):
        aside.until(MOST_WAITING, lambda answer: None, lambda: True)
    got = []

    def stop_asked():
        gate.set()
        return False

    aside.until(MOST_WAITING, got.append, stop_asked)
    assert got[0] == Answer(1, 1, {"val/AP": 0.5})


def test_without_a_checkpoint_there_is_no_evaluation(store, caplog):
    aside = Aside(Fake(), CPU, store, Log(), None, EPOCHS)
    failed: Future[str] = Future()
    failed.set_result("no space")
    aside.saved(Position(epoch=1, step=1), failed)
    finish(aside, pytest.fail)
    assert "epoch 1 is not evaluated: its checkpoint is missing" in caplog.text


def test_a_storage_out_of_reach_costs_no_evaluation(store, monkeypatch, caplog):
    monkeypatch.setattr(evaluations, "pause", lambda attempt: 0)
    away = CheckpointError("the store is away")
    got = []
    finish(asked(Fake(*[away] * (LAST_ATTEMPTS - 1), 0.2), store, (1,)), got.append)
    assert got == [Answer(1, 1, {"val/AP": 0.2})]
    assert f"the store is away; attempt 1 of {LAST_ATTEMPTS}" in caplog.text
    with pytest.raises(CheckpointError, match="the store is away"):
        finish(asked(Fake(*[away] * LAST_ATTEMPTS), store, (2,)))
    assert store.committed()[-1].pending, "whoever goes on asks again"


def test_a_damaged_checkpoint_is_left_out_unless_it_is_the_last(store, monkeypatch, caplog):
    monkeypatch.setattr(evaluations, "pause", lambda attempt: 0)
    gate, damaged = threading.Event(), CheckpointError("it is damaged")
    aside = asked(Fake(gate, damaged, *[damaged] * LAST_ATTEMPTS), store, (1, 2, EPOCHS))
    for step in (2, EPOCHS):
        store.file(step).write(b"something else")
    gate.set()
    got = []
    with pytest.raises(CheckpointError, match="it is damaged"):
        finish(aside, got.append)
    assert [answer.step for answer in got] == [1]
    assert "epoch 2 is left without an evaluation: it is damaged" in caplog.text
    assert [i.pending for i in store.committed()] == [False, False, True]


@pytest.mark.parametrize("error", [DataError("an image is gone"), ClusterError("it is lost")])
def test_any_other_error_ends_the_training(store, error):
    """After the answers before it."""
    aside = asked(Fake(0.2, error), store, (1, 2))
    wait(aside._asked)
    got = []
    with pytest.raises(type(error), match=str(error)):
        finish(aside, got.append)
    assert got == [Answer(1, 1, {"val/AP": 0.2})]
    assert store.committed()[1].pending, "whoever goes on asks again"


def test_nothing_is_written_after_the_end(store):
    gate, log = threading.Event(), Log()
    judge = Fake(gate)
    aside = asked(judge, store, (1,), log)
    aside.close()
    assert judge.closed
    gate.set()
    assert aside._asked[0].result(60) is None
    assert not log.lines
    assert store.committed()[0].pending


def test_what_the_training_has_not_heard_stays_pending(store):
    aside = asked(Fake(0.2), store, (1,))
    wait(aside._asked)
    assert store.committed()[0].pending
    finish(aside)
    assert not store.committed()[0].pending


def test_what_cannot_be_recorded_is_tried_again_and_told_at_the_end(store, monkeypatch):
    working, away = store.judged, [True]
    monkeypatch.setattr(store, "judged", lambda *about: not away[0] and working(*about))
    aside = asked(Fake(0.2, 0.3, 0.4), store, (1, 2))
    with pytest.raises(CheckpointError, match=r"evaluations of the epochs 1, 2 are not recorded in .* same command"):
        finish(aside)
    away.clear()
    away.append(False)
    save(store, 3)
    aside.saved(Position(epoch=3, step=3), None)
    finish(aside)
    assert [(i.step, i.pending) for i in store.committed()] == [(2, False), (3, False)]


def test_a_run_is_not_finished_while_any_evaluation_is_pending(tmp_path):
    """Not that of the last epoch alone: the same command makes them, as it says."""
    e = small_experiment(tmp_path)
    store = CheckpointStore(e.run_uri)
    for step in (1, e.train.epochs):
        save(store, step)
    for step, finished in ((e.train.epochs, False), (1, True)):
        store.judged(step, {"val/AP": 0.2})
        assert summarise(e).already_finished is finished
        (found,) = status_of(e.storage)
        assert found.step == e.train.epochs


def test_the_record_of_a_checkpoint_that_is_gone_is_not_missed(store, caplog):
    assert store.judged(1, {"val/AP": 0.2})
    assert "the evaluation of step 1 is not recorded" in caplog.text


@pytest.mark.slow
def test_its_numbers_and_weights_are_those_of_the_workers(process, tmp_path):
    changes = {"train__epochs": 4, "train__ema": {"enabled": True, "decay": 0.9}, "train__keep_best": 2}
    by_workers = prepare(small_experiment(tmp_path, name="workers", **changes), 1, 0)[0]
    aside = prepare(small_experiment(tmp_path, name="aside", evaluation__where="aside", **changes), 1, 0)[0]
    told: dict[str, list[dict[str, float]]] = {"workers": [], "aside": []}
    results = {}
    for e, judge in ((by_workers, None), (aside, Elsewhere(process, aside))):
        tracker = worker_tracker(e, None)
        results[e.name] = Worker(e, CPU, tracker, told[e.name].append, judge=judge).run()
        tracker.close()
    assert same(weights(by_workers), weights(aside))
    assert results["workers"] == results["aside"]
    assert told["workers"] == told["aside"]
    assert [line["epoch"] for line in told["aside"]] == [1, 2, 3, 4]
    assert evaluated(by_workers) == evaluated(aside)
    kept = [[(i.step, i.metrics) for i in CheckpointStore(e.run_uri).committed()] for e in (by_workers, aside)]
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_whoever_goes_on_asks_again_for_what_was_pending(process, tmp_path, caplog):
    changes = {"train__epochs": 3, "evaluation__where": "aside"}
    e = prepare(small_experiment(tmp_path, **changes), 1, 0)[0]
    straight = e.model_copy(update={"name": "straight"})
    Worker(straight, CPU, worker_tracker(straight, None), judge=Elsewhere(process, straight)).run()

    gate = threading.Event()
    tracker = worker_tracker(e, None)
    with pytest.raises(Interrupted):
        Worker(e, CPU, tracker, stop_asked=has_checkpoint(e), judge=Elsewhere(process, e, gate)).run()
    tracker.close()
    assert [(i.epoch, i.pending) for i in CheckpointStore(e.run_uri).committed() if i.pending] == [(1, True)]

    gate = threading.Event()
    judge, tracker = Elsewhere(process, e, gate), worker_tracker(e, None)
    with pytest.raises(Interrupted, match="with 3 evaluations under way"):
        Worker(e, CPU, tracker, stop_asked=has_checkpoint(e, epoch=3), judge=judge).run()
    tracker.close()
    found = summarise(e)
    assert found is not None
    assert not found.already_finished, "the last epoch is trained, and not evaluated"
    assert next(each.state for each in status_of(e.storage) if each.name == e.name) != "finished"

    tracker = worker_tracker(e, None)
    metrics = Worker(e, CPU, tracker, judge=Elsewhere(process, e)).run()
    tracker.close()
    assert same(weights(e), weights(straight))
    assert evaluated(e) == evaluated(straight)
    assert metrics == evaluated(straight)[max(evaluated(straight))]
    assert summarise(e).already_finished


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [1, 2])
def test_one_that_goes_on_by_its_workers_evaluates_the_newest(process, tmp_path, caplog, epoch):
    """It is stopped in its second epoch, whose checkpoint is the newest then, or at the end of it."""
    e = prepare(small_experiment(tmp_path, evaluation__where="aside"), 1, 0)[0]
    judge = Elsewhere(process, e, threading.Event())
    with pytest.raises(Interrupted):
        Worker(e, CPU, NullTracker(), stop_asked=has_checkpoint(e, epoch), judge=judge).run()
    e = prepare(small_experiment(tmp_path), 1, 0)[0]
    told = []
    metrics = Worker(e, CPU, NullTracker(), told.append).run()
    assert "epoch 1 is left without an evaluation, which was to be made aside" in caplog.text
    kept = CheckpointStore(e.run_uri).committed()
    assert not any(i.pending for i in kept)
    assert kept[-1].metrics == metrics
    assert [line["epoch"] for line in told] == [2]
    assert summarise(e).already_finished


@pytest.mark.slow
def test_without_ray_a_process_of_its_own_evaluates_and_draws(tmp_path, caplog):
    caplog.set_level(logging.INFO, "mgdet")
    done = {}
    for where in ("workers", "aside"):
        e = small_experiment(
            tmp_path, name=where, evaluation__where=where, tracking={"enabled": False, "pictures": True}
        )
        summary, _ = run(e)
        assert summary.already_finished
        outbox = path_of(e) / "unsent_artifacts"
        names = sorted(path.name for path in outbox.rglob("*") if path.is_file())
        done[where] = summary.metrics, evaluated(e), names, (path_of(e) / "report.html").exists()
    assert done["aside"] == done["workers"]
    assert done["aside"][3]


@pytest.mark.slow
def test_a_process_that_fails_ends_the_training_and_the_same_command_goes_on(tmp_path, monkeypatch):
    e = small_experiment(tmp_path, evaluation__where="aside")
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", "/bin/false")
        with pytest.raises(ClusterError, match="ended with status 1"):
            run(e)
    summary, _ = run(e)
    assert summary.already_finished
    assert sorted(evaluated(e)) == [3, 6]
