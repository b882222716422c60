"""What lies under a storage: every run and sweep, how far it has come, and which of them need a person.

Only records are read, no checkpoint, and nothing is imported that takes seconds: neither torch nor Ray. Nothing is
written, so that a status never disturbs a training.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mgdet.errors import ConfigError
from mgdet.lease import BEAT_S, DEAD_AFTER_S, OWNER, Owner, claims
from mgdet.records import RecordError, plain, read_as, unseal
from mgdet.storage import Location, locate
from mgdet.text import aligned, duration, first_line, first_of, printable

State = Literal["running", "finished", "stopped", "died", "damaged"]
CLOCKS_S = 75.0
"""How far the clocks of this machine and of the storage may be apart before an owner is watched (`WATCH_S`)."""
WATCH_S = 1.5 * BEAT_S
"""How long an owner on another machine is watched that by the clocks seems to be dead."""
LEAD = "val/AP"
"""The metric by which the best checkpoint of a run is chosen; larger is better."""


@dataclass
class Status:
    """A run or a sweep under a storage."""

    name: str
    kind: Literal["run", "sweep"]
    state: State
    """`running`: its owner shows itself. `died`: its owner does not, and has not ended it. `stopped`: it was ended, by
    a signal or an error, before its end. `damaged`: its record cannot be read."""
    done: int = 0
    """Epochs that are saved, or trials that are done."""
    of: int | None = None
    """Epochs of the whole training, or trials that have begun; None where that is not known."""
    step: int | None = None
    """Optimizer steps that are saved; None for a sweep."""
    metric: str = LEAD
    best: float | None = None
    best_of: str = ""
    """Which checkpoint or trial has the best value."""
    last_sign: float | None = None
    """When it last wrote something, seconds since 1970 by the storage's clock."""
    owner: str = ""
    """The process that writes it, if one does or has died doing so."""
    problems: list[str] = field(default_factory=list)
    """What a person has to look at; empty where nothing is to be done."""


def status_of(storage: str, now: float | None = None) -> list[Status]:
    """The runs and sweeps in the directory `storage`, or the one that it is itself, by name.

    Records that are damaged are named in `problems`. Raises `ConfigError` where the storage cannot be read.
    """
    place, now = locate(storage), time.time() if now is None else now
    try:
        silent: dict[str, bytes] = {}
        here = _look_at(place, now, silent)
        if silent:
            here = _look_again([place], now, silent)[0]
        if here is not None:
            return [here]
        directories = [place / name for name, size in sorted(place.children().items()) if size is None]
        if not directories and not place.is_directory():
            raise ConfigError(f"{place}: no such directory. Give the storage of runs, such as runs or s3://bucket/runs")
        found = [_look_at(directory, now, silent) for directory in directories]
        if silent:
            found = _look_again(directories, now, silent)
        return [each for each in found if each is not None]
    except OSError as error:
        raise ConfigError(f"{place} cannot be read: {error}. Check the path, the rights and the store") from error


def _look_again(places: list[Location], now: float, silent: dict[str, bytes]) -> list[Status | None]:
    """The same after a while, in which a living owner shows itself.

    Owners on other machines that seem to be gone may be there all the same: clocks may be wrong by hours.
    """
    time.sleep(WATCH_S)
    return [_look_at(place, now, dict(silent)) for place in places]


def _look_at(place: Location, now: float, silent: dict[str, bytes]) -> Status | None:
    """What the directory is; None where it is neither a run nor a sweep.

    `silent` holds, by place, the files of the owners on other machines that nothing was heard of. Where it has this
    one, the owner lives if its file has changed; else it gets this one if by the clocks its owner seems to be gone.
    """
    files = place.modified()
    if "sweep.json" in files:
        found = _sweep(place)
    elif "run.json" in files or (place / "checkpoints").is_directory():
        found = _run(place, "run.json" in files)
    else:
        return None
    checkpoints = (place / "checkpoints").modified() if found.kind == "run" else {}
    found.last_sign = max([*files.values(), *checkpoints.values()], default=None)
    _add_owner(found, place, files, now, silent)
    return found


def _run(place: Location, has_record: bool) -> Status:
    found = Status(place.name, "run", "stopped")
    if has_record:
        learned = _read(place / "run.json", found).get("learned")
        epochs = learned.get("train.epochs") if isinstance(learned, dict) else None
        found.of = epochs if isinstance(epochs, int) else None
    else:
        found.problems.append("run.json is missing; the same command goes on from the newest checkpoint")
    pending = False
    for name in sorted((place / "checkpoints").modified()):
        if name.startswith("step-") and name.endswith(".json"):
            record = _read(place / "checkpoints" / name, found)
            pending |= record.get("pending") is True
            _add_checkpoint(found, record, name.removesuffix(".json"))
    captured = (place / "nonfinite").children()
    if captured:
        found.problems.append(f"a gradient was not finite: mgdet replay {place / 'nonfinite' / max(captured)}")
    if found.of is not None and found.done >= found.of and not pending:
        found.state = "finished"
    return found


def _add_checkpoint(found: Status, record: dict[str, Any], name: str) -> None:
    step, epoch = record.get("step"), record.get("epoch")
    if not (isinstance(step, int) and isinstance(epoch, int)):
        return
    if found.step is None or step >= found.step:
        found.step, found.done = step, epoch
    value = _number(record.get("metrics"), LEAD)
    if value is not None and (found.best is None or value >= found.best):
        found.best, found.best_of = value, name


def _sweep(place: Location) -> Status:
    found = Status(place.name, "sweep", "stopped", of=0)
    definition = _read(place / "sweep.json", found).get("definition")
    metrics = definition.get("metric") if isinstance(definition, dict) else None
    mode = "max"
    if isinstance(metrics, dict) and metrics:
        found.metric, mode = next(iter(metrics.items()))
    better: Callable[[float, float], bool] = (lambda a, b: a < b) if mode == "min" else (lambda a, b: a > b)
    failed, ranks = [], {"finished": 2, "stopped": 1}
    best_rank = -1
    trials = sorted(n for n, size in place.children().items() if size is None and n.startswith(f"{place.name}-"))
    for name in trials:
        if "trial.json" not in (place / name).modified():
            continue
        trial = _read(place / name / "trial.json", found)
        state, evaluations = trial.get("state"), trial.get("evaluations")
        found.of = (found.of or 0) + 1
        found.done += state in ("finished", "stopped", "failed")
        if state == "failed":
            failed.append(f"{name} ({first_line(RecordError(str(trial.get('reason'))))})")
        last = evaluations[-1] if isinstance(evaluations, list) and evaluations else None
        value = _number(last.get("metrics"), found.metric) if isinstance(last, dict) else None
        if value is None or state == "failed":
            continue
        rank = ranks.get(str(state), 0)  # those that ran to their end stand before all others
        if found.best is None or rank > best_rank or (rank == best_rank and better(value, found.best)):
            found.best, found.best_of, best_rank = value, name, rank
    if failed:
        found.problems.append(f"failed trials: {first_of(failed, 3)}; mgdet tune ... --retry-failed tries them again")
    if found.of and found.done == found.of:
        found.state = "finished"
    return found


def _add_owner(
    found: Status, place: Location, files: Mapping[str, float], now: float, silent: dict[str, bytes]
) -> None:
    """Say who writes it, and what that means for its state; `files` are those of its directory, with their times."""
    named = claims(place / OWNER)
    for name, data in named.items():
        key, age = f"{place.uri}/{name}", now - files.get(name, now)
        try:
            owner = read_as(Owner, data)
            found.owner = str(owner)
            if owner.is_here():
                alive = owner.runs()
            elif key in silent:
                alive = data != silent[key]
            else:
                alive = -CLOCKS_S < age < DEAD_AFTER_S + CLOCKS_S
                if not alive:
                    silent[key] = data
        except RecordError:  # it ends, or begins, at this moment
            alive = age < DEAD_AFTER_S + CLOCKS_S
        if alive:
            found.state = "running"
            return
    if named and found.state != "finished":
        found.state = "died"
    if any("cannot be read" in problem for problem in found.problems) and found.state != "finished":
        found.state = "damaged"
    elif found.state in ("stopped", "died"):
        how = "its process is gone" if found.state == "died" else "it was stopped before its end"
        found.problems.append(f"{how}: the same command goes on")


def _read(file: Location, found: Status) -> dict[str, Any]:
    """The content of a record; empty, and named among the problems, where it is damaged."""
    try:
        return unseal(file.read_bytes())
    except FileNotFoundError:  # deleted meanwhile
        return {}
    except (RecordError, OSError) as error:
        found.problems.append(f"{file} cannot be read: {first_line(error)}")
        return {}


def _number(metrics: Any, name: str) -> float | None:
    value = metrics.get(name) if isinstance(metrics, dict) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def as_json(found: Iterable[Status]) -> list[Any]:
    """The states as JSON values, under the names of `Status`."""
    return [plain(asdict(each)) for each in found]


def lines(found: list[Status], now: float | None = None) -> list[str]:
    """A table of all, and below it what needs a person."""
    now = time.time() if now is None else now
    if not found:
        return ["no run and no sweep"]
    rows = [["name", "kind", "state", "done", "best", "last sign of life"]]
    for each in found:
        unit = "trials" if each.kind == "sweep" else "epochs"
        of = f"{each.done} of {'?' if each.of is None else each.of} {unit}"
        best = "" if each.best is None else f"{each.metric} {each.best:.4f} ({each.best_of})"
        ago = "" if each.last_sign is None else f"{duration(max(0.0, now - each.last_sign))} ago"
        rows.append([each.name, each.kind, each.state, of, best, ago])
    out = aligned([[printable(cell) for cell in row] for row in rows])
    wanted = [f"  {printable(each.name)}: {printable(problem)}" for each in found for problem in each.problems]
    return [*out, "", "needs a person:", *wanted] if wanted else out
