"""The report of a sweep, as files: tables of trials, pictures, importances, the winner's configuration, and a page."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import optuna
import yaml

from mgdet.sweep import page
from mgdet.sweep.config import Sweep
from mgdet.sweep.table import sweep_metrics
from mgdet.sweep.trials import Trial, front, judged, ranked, tell, values, winner_of
from mgdet.text import csv_text

_FEWEST = 4
"""Fewer trials than this give no importance: it would be noise."""


def report(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, bytes]:
    """Name and content of each file; those that would be empty are left out.

    `winner.yaml` is a configuration that `mgdet train` runs as it is, under a name of its own. With several metrics
    there is one, `front-<trial>.yaml`, for each trial of the Pareto front as well.
    """
    # Here: the process of each trial imports this module, and Matplotlib takes a third of a second.
    from mgdet.sweep.pictures import divergence_against_ap, importance_bars, parallel_coordinates

    files = {"trials.csv": trials_csv(sweep, trials).encode()}
    choices = judged(trials, sweep.repeat)
    if best := winner_of(sweep, choices):
        files["winner.yaml"] = winner_yaml(sweep, best, "winner").encode()
    if len(sweep.metric) > 1:
        files |= {f"front-{t.name}.yaml": winner_yaml(sweep, t, t.name).encode() for t in front(sweep, choices)}
    if seeds := seeds_csv(sweep, trials):
        files["seeds.csv"] = seeds.encode()
    pictures = {
        "parallel_coordinates.png": parallel_coordinates(sweep, trials),
        "divergence_against_ap.png": divergence_against_ap(sweep, trials),
    }
    found = importance(sweep, choices)
    if found:
        files["importance.csv"] = csv_text(
            [["key", "importance"], *([k, f"{v:.4f}"] for k, v in found.items())]
        ).encode()
        pictures["importance.png"] = importance_bars(sweep, found)
    drawn = {name: picture for name, picture in pictures.items() if picture}
    winner = files.get("winner.yaml", b"").decode()
    return {**files, **drawn, page.NAME: page.sweep_page(sweep, trials, found, winner).encode()}


def trials_csv(sweep: Sweep, trials: Sequence[Trial]) -> str:
    """One row a trial: the searched values, then the last evaluation. The best trial stands first."""
    keys = list(sweep.space)
    metrics = list(dict.fromkeys([*sweep_metrics(sweep), *sorted({m for t in trials for m in t.metrics})]))
    best = ranked(sweep, trials)
    rows: list[list[Any]] = [["trial", "state", "epoch", "epochs", *keys, *metrics, "reason"]]
    for t in [*best, *(t for t in trials if t not in best)]:
        searched = [t.settings.get(k, "") for k in keys]
        rows.append([t.name, t.state, t.epoch, t.epochs, *searched, *(t.metrics.get(m, "") for m in metrics), t.reason])
    return csv_text(rows)


def seeds_csv(sweep: Sweep, trials: Sequence[Trial]) -> str | None:
    """Mean and sample standard deviation over seeds, where `seed` is searched or trials are repeated.

    Only trials that ran to their end are counted; None where there is one seed.
    """
    if "seed" not in sweep.space and sweep.repeat == 1:
        return None
    keys = [k for k in sweep.space if k != "seed"]
    groups: dict[tuple[str, ...], list[Trial]] = defaultdict(list)
    for t in trials:
        if t.state == "finished":
            groups[tuple(str(t.settings.get(k, "")) for k in keys)].append(t)
    metrics = sweep_metrics(sweep)
    rows: list[list[Any]] = [[*keys, "seeds", *(f"{m} {what}" for m in metrics for what in ("mean", "deviation"))]]
    for group, members in groups.items():
        cells: list[Any] = []
        for m in metrics:
            found = [t.metrics[m] for t in members if m in t.metrics]
            cells.append(f"{statistics.mean(found):.4f}" if found else "")
            cells.append(f"{statistics.stdev(found):.4f}" if len(found) > 1 else "")
        rows.append([*group, len(members), *cells])
    return csv_text(rows)


def winner_yaml(sweep: Sweep, trial: Trial, suffix: str) -> str:
    """YAML of the trial's experiment, every `auto` kept, under the name `<sweep>-<suffix>` to train it anew."""
    experiment = sweep.experiment(trial.settings)
    name = suffix if suffix.startswith(sweep.name) else f"{sweep.name}-{suffix}"
    tree = experiment.model_copy(update={"name": name}).shown()
    found = ", ".join(f"{m} {trial.metrics[m]:.4f}" for m in sweep_metrics(sweep) if m in trial.metrics)
    repeated = f", {trial.reason}" if sweep.repeat > 1 else ""
    return f"# {trial.name} of the sweep {sweep.name}: {found} at epoch {trial.epoch}{repeated}\n" + yaml.safe_dump(
        tree, sort_keys=False
    )


def importance(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, float] | None:
    """Each key's share in what sets the best trials apart, by PED-ANOVA (Watanabe et al., IJCAI 2023). The sum is 1.

    Keys that do not exist in every trial are left out. Trials that were stopped count with what they had reached.
    None for too few trials, or where nothing varies.
    """
    metric, mode = sweep.lead
    study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
    one = sweep.model_copy(update={"metric": {metric: mode}})
    scored = [t for t in trials if t.done and t.state != "failed" and values(one, t) is not None]
    if len(scored) < _FEWEST or len({t.metrics[metric] for t in scored}) < 2:
        return None
    for trial in scored:
        tell(study, one, trial)
    everywhere = [k for k in sweep.space if all(k in t.params for t in scored)]
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=everywhere)
    return {k: float(v) for k, v in found.items()} or None
