"""Ray Tune's searcher and scheduler, both fed from the sweep's own record, so that a restarted sweep knows its past.

Tune's own restore loses what a scheduler has seen (rungs, medians), and its saved state may be seconds old, so that a
trial started just before a crash would be sampled again. Here each trial is on disk before Tune is told of it.
"""

import logging
import math
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.study import StudyDirection
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from mgdet.config import Experiment
from mgdet.runs.launch import absolute
from mgdet.sweep.config import ASHA, TPE, Median, Sweep
from mgdet.sweep.constraints import excesses
from mgdet.sweep.repetitions import cannot_win
from mgdet.sweep.space import Params, Space
from mgdet.sweep.trials import Trial, TrialStore, judged, tell, values

logger = logging.getLogger(__name__)

EXCESSES = "excesses"
"""The attribute of a trial of Optuna that says by how much it breaks each constraint."""


class ResumingSearcher(Searcher):  # type: ignore[misc]  # ray has no types
    """Gives Tune the trials that are not done, then new ones, which Optuna chooses.

    A trial that goes on after a restart keeps its number, its values and its directory. Once `stopping` is true there
    is no further trial. Optuna also knows the `earlier` trials, of other sweeps. Where trials are repeated, it chooses
    values once for all repetitions, and hears the mean of what they reach when the last of them has ended.
    """

    def __init__(
        self,
        sweep: Sweep,
        store: TrialStore,
        unfinished: Sequence[Trial],
        cluster: dict[str, Any],
        stopping: Callable[[], bool] = lambda: False,
        earlier: Sequence[Trial] = (),
    ) -> None:
        super().__init__()  # without a metric: Tune would end the whole sweep at an evaluation where it is undefined
        self._sweep, self._store, self._cluster = sweep, store, cluster
        self._unfinished, self._stopping = list(unfinished), stopping
        self._space = Space(sweep.space)
        self._running: dict[str, Trial] = {}
        self._chosen: dict[int, optuna.Trial] = {}  # by the number of the choice, which its repetitions share
        self._ended: dict[int, list[list[float] | None]] = defaultdict(list)  # what its repetitions have reached
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(sampler=_sampler(sweep, 0), directions=_directions(sweep))
        for trial in earlier:
            tell(self._study, sweep, trial)
        open_choices: dict[int, Params] = {}
        for choice, trial in enumerate(judged(store.trials, sweep.repeat)):
            if trial.done:
                tell(self._study, sweep, trial)
            else:
                open_choices[choice] = trial.params
        for trial in store.trials:
            if trial.done and (choice := trial.number // sweep.repeat) in open_choices:
                self._ended[choice].append(self._reached(trial))
        for params in open_choices.values():
            self._study.enqueue_trial(params)
        points = sweep.points
        for choice in range(-(-len(store.trials) // sweep.repeat), sweep.total // sweep.repeat):
            if point := points[choice % len(points)]:
                self._study.enqueue_trial(point)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial, as the dictionary that its process gets: `number`, and `experiment` as plain values."""
        if not self._unfinished:
            self._leave_out()
        if self._stopping() or (not self._unfinished and len(self._store.trials) >= self._sweep.total):
            return str(Searcher.FINISHED)
        number = self._unfinished[0].number if self._unfinished else len(self._store.trials)
        params = self._values_of(number // self._sweep.repeat)
        if self._unfinished:
            trial = self._unfinished.pop(0)
        else:
            trial = self._store.new(self._sweep, params, self._space.settings(params))
        self._running[trial_id] = trial
        # Tune writes this to the sweep's directory: without the password that a tracking URI may hold
        experiment = trial_experiment(self._sweep, trial, self._cluster).shown()
        return {"number": trial.number, "experiment": experiment}

    def _values_of(self, choice: int) -> Params:
        """The values that all repetitions of a choice share. They depend on its number and on what is known now.

        So a sweep that was started again goes on as one that was not.
        """
        if choice not in self._chosen:
            self._study.sampler = _sampler(self._sweep, choice)
            self._chosen[choice] = self._study.ask()
        return self._space.suggest(self._chosen[choice])

    def _leave_out(self) -> None:
        """Record the next trials as stopped, as long as they are repetitions of a choice that cannot win any more."""
        sweep, store = self._sweep, self._store
        while (number := len(store.trials)) < sweep.total and number % sweep.repeat:
            choice = number // sweep.repeat
            if not (reason := cannot_win(sweep, store.trials, choice)):
                return
            params = self._values_of(choice)
            trial = store.new(sweep, params, self._space.settings(params))
            trial.state, trial.reason = "stopped", reason
            store.save(trial)
            logger.info("%s %s", trial.name, reason)
            self._hear(choice, None)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna, when all repetitions have ended, the metrics of their last evaluations, or that they failed."""
        trial = self._running.pop(trial_id)
        self._hear(trial.number // self._sweep.repeat, None if error else self._reached(trial))

    def _hear(self, choice: int, reached: list[float] | None) -> None:
        """Note what one more repetition of a choice has come to, and tell Optuna where it was the last one."""
        ended = self._ended[choice]
        ended.append(reached)
        if len(ended) == self._sweep.repeat:
            good = [found for found in ended if found is not None]
            means = [statistics.fmean(each) for each in zip(*good, strict=True)] or None
            state = optuna.trial.TrialState.COMPLETE if means else optuna.trial.TrialState.FAIL
            if self._sweep.constraints:
                reached_all = judged(self._store.trials, self._sweep.repeat)[choice].metrics
                self._chosen[choice].set_user_attr(EXCESSES, excesses(self._sweep.constraints, reached_all))
            self._study.tell(self._chosen[choice], means, state=state)

    def _reached(self, trial: Trial) -> list[float] | None:
        return None if trial.state == "failed" else values(self._sweep, trial)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing is pickled: Tune would write it to the sweep's directory, and it may hold a tracking password."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file, which Tune expects: the state of the search is in the trials' own records."""
        open(checkpoint_path, "w").close()

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the constructor has restored the search from the trials' own records."""


def trial_experiment(sweep: Sweep, trial: Trial, cluster: dict[str, Any]) -> Experiment:
    """The experiment of a trial, with absolute paths and the resolved cluster of the sweep."""
    experiment = absolute(sweep.trial(trial.name, trial.settings))
    return experiment.model_copy(update={"cluster": experiment.cluster.model_copy(update=cluster)})


def _directions(sweep: Sweep) -> list[StudyDirection]:
    return [StudyDirection.MINIMIZE if mode == "min" else StudyDirection.MAXIMIZE for mode in sweep.metric.values()]


def _sampler(sweep: Sweep, choice: int) -> optuna.samplers.BaseSampler:
    """The configured sampler, with the random numbers of one choice of values."""
    config = sweep.searcher
    seed = (config.seed + 1_000_003 * choice) % 2**32  # as many as NumPy takes
    if isinstance(config, TPE):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `group`, since 2021
            warnings.filterwarnings("ignore", ".*constraints_func")  # Optuna 5 has another way, which 4 does not know
            return optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=config.startup_trials,
                multivariate=config.multivariate,
                group=config.group,
                constraints_func=(lambda trial: trial.user_attrs.get(EXCESSES, [])) if sweep.constraints else None,
                constant_liar=True,  # a running trial counts as a bad one: trials of one time do not crowd together
            )
    return optuna.samplers.RandomSampler(seed=seed)


def build_scheduler(sweep: Sweep, store: TrialStore, longest: int) -> TrialScheduler:
    """The configured scheduler; `longest` is the number of epochs of the longest trial."""
    metric, mode = sweep.lead
    config, common = sweep.scheduler, {"time_attr": "epoch", "metric": metric, "mode": mode}
    if isinstance(config, ASHA):
        inner = ASHAScheduler(
            max_t=longest, grace_period=config.grace_epochs, reduction_factor=config.reduction_factor, **common
        )
    elif isinstance(config, Median):
        inner = MedianStoppingRule(
            grace_period=config.grace_epochs,
            min_samples_required=config.min_trials,
            min_time_slice=math.inf,  # never pause a trial for others to catch up: it would be ended and started again
            **common,
        )
    else:
        return FIFOScheduler()
    return RememberingScheduler(inner, store)


class _StableId:
    """Stands for a trial in a scheduler, under an id that stays the same when the sweep is restarted."""

    def __init__(self, number: int) -> None:
        self.trial_id = str(number)


class RememberingScheduler(FIFOScheduler):  # type: ignore[misc]  # ray has no types
    """Wraps a scheduler: feeds it all recorded evaluations first, and names each trial to it by its number."""

    def __init__(self, inner: TrialScheduler, store: TrialStore) -> None:
        super().__init__()
        self._inner = inner
        self._known: dict[int, _StableId] = {}
        self._seen: dict[int, int] = {}
        for trial in store.trials:
            for evaluation in trial.evaluations:
                self._judge(trial.number, {"epoch": evaluation.epoch, **evaluation.metrics})

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """The inner scheduler's decision on a new evaluation: one of Tune's `CONTINUE`, `STOP` and `PAUSE`."""
        return self._judge(trial.config["number"], result)

    def _judge(self, number: int, result: dict[str, Any]) -> str:
        if number not in self._known:
            self._known[number] = _StableId(number)
            self._inner.on_trial_add(None, self._known[number])
        if result.get("epoch", 0) <= self._seen.get(number, 0):  # a restart repeats it
            return str(TrialScheduler.CONTINUE)
        self._seen[number] = result["epoch"]
        return str(self._inner.on_trial_result(None, self._known[number], result))
