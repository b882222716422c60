"""The trials of a sweep as a file of Optuna, which its dashboard opens: `optuna-dashboard runs/quick/optuna.journal`.

It is a copy for people. A sweep is continued from its `trial.json` files, and never reads this one.
"""

import logging
import math
import warnings
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from mgdet.storage import local_path
from mgdet.sweep.config import Sweep
from mgdet.sweep.trials import Trial, TrialStore, distributions, values

logger = logging.getLogger(__name__)

FILE = "optuna.journal"


class StudyFile:
    """Writes `optuna.journal` in the directory of a sweep on a local disk; elsewhere there is none.

    It begins with the trials that are done, and gets each further one with `add`. No method raises: the first failure
    is logged, and then there is no file for the rest of this start.
    """

    def __init__(self, sweep: Sweep, store: TrialStore) -> None:
        self.sweep = sweep
        self._study: optuna.Study | None = None
        directory = local_path(store.directory.uri)
        if directory is None:
            return
        try:
            self._study = _new(sweep, directory / FILE)
        except Exception as error:  # a copy for people must not end a search
            self._give_up(error)
        for trial in store.trials:
            if trial.done:
                self.add(trial)

    def add(self, trial: Trial) -> None:
        """Append a trial that is done."""
        if self._study is None:
            return
        try:
            self._study.add_trial(as_optuna(self.sweep, trial))
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._study = None
        logger.warning("%s cannot be written: %s. The search goes on without it", FILE, error)


def _new(sweep: Sweep, file: Path) -> optuna.Study:
    file.parent.mkdir(parents=True, exist_ok=True)
    for old in (file, Path(f"{file}.lock")):  # the latter stays behind where a driver was killed
        old.unlink(missing_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(file))),
        study_name=sweep.name,
        directions=[
            StudyDirection.MINIMIZE if mode == "min" else StudyDirection.MAXIMIZE for mode in sweep.metric.values()
        ],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # since 2023
        study.set_metric_names(list(sweep.metric))
    return study


def as_optuna(sweep: Sweep, trial: Trial) -> FrozenTrial:
    """A trial that is done, as Optuna shows it: stopped ones are pruned, with the leading metric at each epoch."""
    found, single, lead = values(sweep, trial), len(sweep.metric) == 1, sweep.lead[0]
    state = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED}.get(trial.state, TrialState.FAIL)
    if found is None and trial.evaluations:  # one without any was left out, or failed
        state = TrialState.FAIL
    has_values = state == TrialState.COMPLETE or (state == TrialState.PRUNED and single)
    curve = {e.epoch: e.metrics[lead] for e in trial.evaluations if math.isfinite(e.metrics.get(lead, math.nan))}
    return create_trial(
        state=state,
        values=found if has_values else None,
        params=trial.params,
        distributions=distributions(sweep, trial),
        user_attrs={"name": trial.name, "state": trial.state, "reason": trial.reason},
        intermediate_values=curve if single else None,
    )
