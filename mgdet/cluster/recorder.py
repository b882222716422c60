"""The driver of a sweep at each event of Tune: update the record, end tracked runs, print the table."""

import logging
import re
import time
from collections.abc import Callable
from typing import Any

from ray import tune

from mgdet import errors
from mgdet.bounded import within
from mgdet.cluster.search import trial_experiment
from mgdet.runs.record import journal_copies, log_directory, open_run
from mgdet.sweep.config import ASHA, Sweep
from mgdet.sweep.study_file import StudyFile
from mgdet.sweep.table import headline, table
from mgdet.sweep.trials import FAILURE, State, Trial, TrialStore
from mgdet.tracking import RunHandle, Status, Tracking

logger = logging.getLogger(__name__)

_GRACE_S = 5.0
"""Seconds from the end of a trial until its worker, which writes metrics, is certainly gone."""
ABANDON_S = 60.0
"""The longest time in which the runs of all trials are ended when a sweep has to stop at once."""


class Recorder(tune.Callback):  # type: ignore[misc]  # ray has no types
    """Keeps `trial.json` of each trial up to date and closes the tracker's runs of trials whose processes are gone."""

    def __init__(
        self,
        sweep: Sweep,
        store: TrialStore,
        concurrent: int,
        parent: RunHandle | None,
        tracking: Tracking,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._stopping = stopping
        self.sweep, self.store, self.concurrent, self.parent, self.tracking = sweep, store, concurrent, parent, tracking
        self._closing: list[tuple[float, int]] = []
        self._next_table = time.monotonic() + sweep.report_every_s
        self._study_file = StudyFile(sweep, store)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing is pickled into the sweep's directory, for the reason given in `ResumingSearcher.__getstate__`."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that a process of the trial has started."""
        self._set(trial, state="running")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record an evaluation of the trial, unless a restart only repeats it; or that it failed for good."""
        known = self._trial(trial)
        if FAILURE in result:
            self._set(trial, state="failed", reason=str(result[FAILURE]))
            return
        if known.add(int(result["epoch"]), result):
            self._save(known)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Log that the trial failed and is started again."""
        logger.warning("%s failed, for the reason above, and is tried again", self._trial(trial).name)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that the trial failed and has no retries left."""
        self._done(trial, "failed", _error(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that the trial reached its last epoch, failed for good, or was stopped, by scheduler or sweep."""
        known = self._trial(trial)
        if known.state == "failed":
            self._done(trial, "failed", known.reason)
        elif known.epoch >= known.epochs:
            self._done(trial, "finished", "")
        elif self._stopping():  # its run in the tracker is ended by `settle`, before the sweep ends
            self._set(trial, state="waiting", reason="")
        else:
            self._done(trial, "stopped", why_stopped(self.sweep, known))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """End the tracker's runs whose waiting time is over, and log the table of trials if it is due."""
        now = time.monotonic()
        due = [number for when, number in self._closing if when <= now]
        self._closing = [(when, number) for when, number in self._closing if when > now]
        for number in due:
            self._close(self.store.trials[number])
        if now >= self._next_table:
            self._next_table = now + self.sweep.report_every_s
            logger.info("%s", table(self.sweep, self.store.trials, self.concurrent))

    def settle(self) -> None:
        """End every run of a trial that is still open in the tracker. To be called while no trial is running."""
        if self.parent is None:
            return
        by_name = {t.name: t for t in self.store.trials}
        for child in self.tracking.children(self.parent):
            if child.running and child.name in by_name:
                self._close(by_name[child.name], child.run_id)

    def abandon(self) -> None:
        """End every run that is still open in the tracker at once, without sending anything, within a bound of time.

        Of trials whose processes may still be there. What they have not sent, the next start of the sweep sends.
        """
        try:
            within(ABANDON_S, self._end_all)
        except TimeoutError as error:
            logger.warning("not all runs of trials could be ended: %s; the next start of the sweep ends them", error)

    def _end_all(self) -> None:
        states = {t.name: t.state for t in self.store.trials}
        for child in self.tracking.children(self.parent) if self.parent else ():
            if self.parent and child.running and child.name in states:
                self.tracking.end(self.parent.sibling(child.run_id), status_of(states[child.name]))

    def _trial(self, trial: Any) -> Trial:
        return self.store.trials[int(trial.config["number"])]

    def _set(self, trial: Any, **changes: Any) -> None:
        known = self._trial(trial)
        for key, value in changes.items():
            setattr(known, key, value)
        self._save(known)

    def _save(self, trial: Trial) -> None:
        try:
            self.store.save(trial)
        except OSError as error:  # no reason to stop the sweep: the next event writes the record again
            logger.error("the record of %s cannot be written: %s", trial.name, error)

    def _done(self, trial: Any, state: str, reason: str) -> None:
        self._set(trial, state=state, reason=reason)
        known = self._trial(trial)
        self._study_file.add(known)
        if state != "finished":  # a trial that finished has ended its run itself
            self._closing.append((time.monotonic() + _GRACE_S, known.number))
        logger.info("%s", headline(self.sweep, known))

    def _close(self, trial: Trial, run_id: str | None = None) -> None:
        """End the trial's run in the tracker with the status, state and reason in the trial's record."""
        if self.parent is None:
            return
        experiment = trial_experiment(self.sweep, trial, {})
        if run_id is None:
            run = open_run(experiment)
            run_id = run.run_ids.get(self.tracking.name) if run else None
        if run_id is None:
            return
        tags = {"mgdet.state": trial.state, **({"mgdet.reason": trial.reason} if trial.reason else {})}
        where = log_directory(experiment), journal_copies(experiment)
        self.tracking.close_child(self.parent.sibling(run_id), status_of(trial.state), tags, *where)


def status_of(state: State) -> Status:
    """The status in the tracker of the run of a trial that is not running."""
    ends: dict[State, Status] = {"finished": "FINISHED", "failed": "FAILED"}
    return ends.get(state, "KILLED")


def why_stopped(sweep: Sweep, trial: Trial) -> str:
    """The sentence that says why the scheduler stopped a trial: the rule, the metric and the epoch."""
    metric, _ = sweep.lead
    value = f"{metric} = {trial.metrics.get(metric, float('nan')):.4f} at epoch {trial.epoch} of {trial.epochs}"
    if isinstance(sweep.scheduler, ASHA):
        return (
            f"asha: {value} is not among the best 1/{sweep.scheduler.reduction_factor:g} of the trials that got there"
        )
    return f"{sweep.scheduler.name}: {value} is worse than the other trials' median"


_RAISED = re.compile(r"(?:[a-z]\w*\.)*([A-Z]\w*): (.+)")


def _error(trial: Any) -> str:
    """The message of the last exception in the tracebacks that Tune keeps of a failed trial."""
    try:
        text = str(trial.get_error() or trial.get_pickled_error() or "")
    except Exception as error:  # the pickled error may be of a class that cannot be made again
        text = repr(error)
    raised = [m for line in text.splitlines() if (m := _RAISED.match(line.strip()))]
    if not raised:
        return text.strip().splitlines()[-1] if text.strip() else "the process of the trial died"
    kind, message = raised[-1].groups()
    meant_for_people = isinstance(known := getattr(errors, kind, None), type) and issubclass(known, errors.MgdetError)
    return message if meant_for_people else f"{kind}: {message}"
