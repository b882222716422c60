"""What the trainings of a directory came to, as text that is equal where the bits are, and how two of them differ.

    python benchmarks/run_outcome.py DIRECTORY ANOTHER

Weights: every tensor of the last checkpoint, which are the weights, their moving average, the optimizer's state and the
generators. Metrics: of that checkpoint, every value in `metrics.jsonl` but for lines marked as replays, every value in
MLflow, every evaluation in a trial's record. States: which checkpoint is the best, the state of each MLflow run, and of
each trial. A step that stands twice or is missing is a difference like any other. Times, what is measured by time and
what is measured of the machine are left out: see `LEFT_OUT`.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from mgdet.runs.compare import MEASURED
from mgdet.sweep.trials import Trial
from mgdet.training.checkpoint import CheckpointStore

LEFT_OUT = (*MEASURED, "system/")
"""Metrics, or the beginnings of their names, that two equal runs do not share."""
Values = dict[str, tuple[str, ...]]
"""What stands under a name, written so that equal text means equal bits; once each where nothing is doubled."""
Result = dict[str, Values]
"""What a job came to: its weights, metrics and states."""


def differences(undisturbed: Result, disturbed: Result) -> Iterator[str]:
    """Every difference in words."""
    for part in undisturbed:
        for name in undisturbed[part] | disturbed[part]:
            theirs, mine = undisturbed[part].get(name, ()), disturbed[part].get(name, ())
            if mine != theirs:
                what = "is missing" if not mine else "differs"
                if len(mine) > len(theirs):
                    what = f"stands {len(mine)} times, undisturbed {len(theirs)} times"
                yield f"{name} {what}: {', '.join(mine)} (undisturbed: {', '.join(theirs)})"


def journal_values(lines: Iterable[str]) -> tuple[Values, int, int]:
    """The metrics of a `metrics.jsonl` without its replays, how many training steps are replays, and the last step.

    A line that is not whole was not written: its process was killed meanwhile.
    """
    values: Values = {}
    replays = last = 0
    for line in lines:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            last = max(last, record["step"])
            if record.get("replay"):
                replays += "train/loss" in record["metrics"]
                continue
            add(values, {(metric, record["step"]): value for metric, value in record["metrics"].items()})
    return values, replays, last


def add(values: Values, metrics: Mapping[tuple[str, int], float | str], prefix: str = "") -> None:
    """Put values of (metric, step) beside what stands there; `repr` of a float tells every bit."""
    for (metric, step), value in metrics.items():
        if not metric.startswith(LEFT_OUT):
            name = f"{prefix}{metric} of step {step}"
            values[name] = (*values.get(name, ()), repr(float(value)))


def digests(tree: object, name: str) -> Values:
    """All tensors within dictionaries and lists, by their places."""
    if isinstance(tree, torch.Tensor):
        data = tree.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return {name: (f"{tree.dtype} {tuple(tree.shape)} {hashlib.sha256(data).hexdigest()[:16]}",)}
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    return {place: text for key, child in items for place, text in digests(child, f"{name}/{key}").items()}


def journals(directory: Path) -> dict[str, tuple[Values, int, int]]:
    """What each training under a directory has logged so far: `journal_values` of it."""
    paths = sorted(directory.glob("runs/**/metrics.jsonl"))
    return {p.parent.name: journal_values(p.read_text().splitlines()) for p in paths}


def result(directory: Path) -> Result:
    """What the job in a directory came to; its MLflow store is `mlflow.db` there."""
    from mlflow import MlflowClient

    weights: Values = {}
    metrics: Values = {}
    states: Values = {}
    for path in sorted(directory.glob("runs/**/run.json")):
        name, store = path.parent.name, CheckpointStore(str(path.parent))
        last, best = store.committed()[-1], store.best()
        weights |= digests(store.load(last), name)
        add(metrics, {(m, last.step): v for m, v in last.metrics.items()}, f"{name}, checkpoint: ")
        states[f"{name}, best checkpoint"] = (best.file if best else "",)
    for name, (values, _, _) in journals(directory).items():
        metrics |= {f"{name}, metrics.jsonl: {k}": v for k, v in values.items()}
    for path in sorted(directory.glob("runs/**/trial.json")):
        trial = Trial.model_validate_json(path.read_text())
        states[f"{trial.name}, trial.json"] = (trial.state, trial.reason, json.dumps(trial.settings))
        for e in trial.evaluations:
            add(metrics, {(m, e.epoch): v for m, v in e.metrics.items()}, f"{trial.name}, trial.json, by epoch: ")
    client = MlflowClient(f"sqlite:///{directory}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("mgdet").experiment_id])
    for run in sorted(runs, key=lambda r: r.info.run_name):
        name = f"{run.info.run_name}, MLflow"
        states[name] = (*states.get(name, ()), run.info.status)
        for metric in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, metric):
                add(metrics, {(metric, point.step): point.value}, f"{name}: ")
    return {"weights": weights, "metrics": metrics, "states": states}


if __name__ == "__main__":
    found = list(differences(result(Path(sys.argv[1])), result(Path(sys.argv[2]))))
    print("\n".join(found or ["equal"]))
    sys.exit(bool(found))
