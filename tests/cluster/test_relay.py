"""What the driver says of its workers, without a Ray cluster: see `test_submit.py` for the whole way."""

import logging
import pickle
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError

from mgdet.cluster import relay, train
from mgdet.cluster.restarts import Restarts, cause_of, failure
from mgdet.data.dataset import UnreadableImage
from mgdet.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from mgdet.training.checkpoint import UnsavedError
from mgdet.training.progress import Progress, shown_by


def record(text, level=logging.INFO):
    return logging.makeLogRecord({"name": "mgdet.x", "msg": text, "levelno": level})


def test_a_full_mailbox_drops_the_oldest_and_says_how_many(monkeypatch, caplog):
    monkeypatch.setattr(relay, "_MOST_KEPT", 2)
    caplog.set_level("INFO", logger="mgdet")
    box = relay.Mailbox()
    for text in "abc":
        box.put(record(text))
    relay._log(*box.take())
    assert [r.getMessage() for r in caplog.records][1:] == ["b", "c"]
    assert "1 lines of the workers are left out" in caplog.text
    assert box.take() == ([], 0)


def test_the_driver_keeps_to_its_level_and_shows_progress(caplog):
    caplog.set_level("WARNING", logger="mgdet")
    seen = []
    with shown_by(seen.append):
        progress = Progress("epoch 1/2", 1, 2, "")
        moved = logging.makeLogRecord({"progress": progress})
        relay._log([record("said"), moved, record("warned", logging.WARNING)], 0)
    assert seen == [progress]
    assert [r.getMessage() for r in caplog.records] == ["warned"]


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ({0: RuntimeError("peer closed"), 1: RayActorError()}, "worker 1 (and 1 more) failed: The actor "),
        ({0: ValueError("x")}, "worker 0 failed: ValueError: x"),
    ],
    ids=["killed", "bug"],
)
def test_a_failure_names_its_cause(errors, said):
    assert failure(errors).startswith(said)


def test_the_error_that_ended_a_training_is_found_under_rays_wrappers():
    """One that can be mended comes before the others, whichever worker had it."""

    class Wrapped(Exception):
        def __init__(self, cause=None, worker_failures=None):
            self.cause, self.worker_failures = cause, worker_failures or {}

    lost, mendable = RuntimeError("peer closed"), DataError("a.jpg: cannot be read")
    behind = RuntimeError("again")
    behind.__cause__ = Wrapped(mendable)
    assert cause_of(Wrapped(worker_failures={0: Wrapped(lost), 1: Wrapped(Wrapped(behind))})) is mendable
    assert cause_of(Wrapped(worker_failures={0: Wrapped(lost)})) is lost
    assert cause_of(Wrapped(lost)) is lost


@pytest.mark.parametrize(
    "kind", [DataError, CheckpointError, ConfigError, NonFiniteError, UnsavedError, UnreadableImage]
)
def test_an_error_that_can_be_mended_ends_the_training_whatever_the_other_workers_say(kind):
    """Ray makes a `ControllerError` of what a callback raises, and starts nothing again."""
    from ray.train import ControllerError

    mendable = pickle.loads(pickle.dumps(kind("a.jpg: cannot be read")))
    mendable.__cause__ = OSError("what it was made from")
    wrapped = RuntimeError("of Ray")
    wrapped.cause = mendable
    restarts = Restarts(3, "")
    with pytest.raises(kind, match=r"a\.jpg") as caught:
        restarts.after_exception(None, {0: RuntimeError("peer closed"), 1: wrapped})
    assert restarts.failures == 0, "it is no failure that is counted"
    at_the_driver = pickle.loads(pickle.dumps(ControllerError(caught.value)))
    assert type(cause_of(at_the_driver)) is kind
    assert str(cause_of(at_the_driver)) == "a.jpg: cannot be read"


def test_a_worker_that_lacks_a_plugin_says_so_and_settles_what_it_logged(monkeypatch):
    settled = []
    monkeypatch.setattr("ray.train.get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
    to_driver = SimpleNamespace(settle=lambda: settled.append(True))
    monkeypatch.setattr(train, "speak_through_driver", lambda *args: to_driver)
    task = {"experiment": {"plugins": ["no_such_plugin"]}, "trial": False, "level": logging.INFO}
    with pytest.raises(ConfigError, match="no_such_plugin was not found"):
        train._worker_main(task)
    assert settled == [True]


def test_restarts_are_counted():
    restarts = Restarts(1, "")
    restarts.failures = 1
    assert restarts.goes_on
    restarts.failures = 2
    assert not restarts.goes_on
    assert Restarts(-1, "").goes_on
