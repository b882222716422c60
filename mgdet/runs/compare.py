"""What made a run, compared with what is here; and the metrics of two runs, bit for bit."""

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from mgdet.config import Experiment
from mgdet.data.fingerprint import data_differences, describe_data
from mgdet.models.weights import NAMED_WEIGHTS
from mgdet.records import plain
from mgdet.text import metric_text, printable
from mgdet.tracking.journal import points_of

Verdict = Literal["same", "differs", "DECIDES", "not recorded"]

MEASURED = ("train/images_per_s", "val/seconds", "val/latency_ms", "time/")
"""How metrics begin that say how long something took: no two runs agree in them."""
WITHOUT_INFLUENCE = frozenset({"ray", "mlflow", "optuna", "pyarrow", "command", "cpus"})
"""What may differ: libraries that move, keep and search but compute nothing of a training, and how it was started.

The number of CPUs is none of its threads, which do decide: sums are split among them.
"""
OF_GPUS = frozenset({"cuda", "gpus"})
"""What decides only where the training ran on GPUs."""
_SAID = ((None, "no checkout"), (True, "yes"), (False, "no"))
_WIDTH = 44


class Row(NamedTuple):
    """One thing that was compared."""

    what: str
    there: str
    """As the run's record has it; empty where it has none."""
    here: str
    verdict: Verdict
    """Whether it is the same, and if not whether another result has to be expected."""


def compare_origin(made: Mapping[str, Any], here: Mapping[str, Any], gpu: bool) -> list[Row]:
    """Compare what made a run, as its record says, with what is here; both as `mgdet.provenance.made_by` gives them.

    Changed files of a checkout decide even where both have some: which ones is not recorded.
    """
    if not made:
        return [Row("everything", "", "", "DECIDES")]
    there, now = dict(_facts(made)), dict(_facts(here))
    rows = []
    for what in dict.fromkeys([*now, *there]):
        before, after = there.get(what), now.get(what, "")
        if before is None:
            rows.append(Row(what, "", after, "not recorded"))
        elif before == after and not (what == "uncommitted changes" and before == "yes"):
            rows.append(Row(what, before, after, "same"))
        else:
            harmless = what in WITHOUT_INFLUENCE or (what in OF_GPUS and not gpu)
            rows.append(Row(what, before, after, "differs" if harmless else "DECIDES"))
    return rows


def _facts(made: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values of what made a run; a record is data from outside, and may hold anything."""
    for key, name in (("mgdet", "mgdet"), ("git_commit", "git commit"), ("git_dirty", "uncommitted changes")):
        if key in made:
            value = made[key]
            said = next((said for known, said in _SAID if value is known), str(value))
            yield name, said
    for part in ("versions", "hardware"):
        if isinstance(made.get(part), Mapping):
            yield from ((str(k), str(v)) for k, v in made[part].items())
    if "command" in made:
        yield "command", str(made["command"])


def compare_data(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[Row]:
    """Compare fingerprints of data sets: one row, or one for each difference."""
    if "splits" not in there:
        return [Row("data", "", describe_data(here), "not recorded")]
    lines = data_differences(there, here)
    same = describe_data(here)
    return [Row("data", line, "", "DECIDES") for line in lines] or [Row("data", same, same, "same")]


def compare_configuration(identity: Mapping[str, Any], experiment: Experiment) -> list[Row]:
    """Compare the keys that decide a run, as it was asked for, with its resolved configuration as it is read here.

    What was asked for as `auto` may have become anything. The place of the data and how they were drawn do not matter,
    their content does.
    """
    places = ("name", "data.uri", "data.generate")
    now = {k: v for k, v in plain(experiment.identity()).items() if not k.startswith(places)}
    before = {k: v for k, v in identity.items() if not k.startswith(places)}
    rows = []
    for key in sorted(now.keys() | before.keys()):
        if key not in before:
            rows.append(Row(key, "", str(now[key]), "not recorded"))
        elif before[key] not in ("auto", now.get(key, "auto")):
            rows.append(Row(key, str(before[key]), str(now.get(key)), "DECIDES"))
    if experiment.model.weights not in NAMED_WEIGHTS:
        rows.append(Row("content of model.weights", "", experiment.model.weights, "not recorded"))
    if isinstance(experiment.cluster.workers, tuple):
        low, high = experiment.cluster.workers
        rows.append(Row("cluster.workers", f"{low} to {high}, as they came and went", "", "DECIDES"))
    same = f"{len(now)} keys"
    return rows or [Row("configuration", same, same, "same")]


def table(rows: Iterable[Row]) -> str:
    """The rows as text. What is the same stands once."""
    lines = [("", "what", "the run", "here")]
    for row in rows:
        here = "=" if row.verdict == "same" else row.here
        lines.append(("" if row.verdict == "same" else row.verdict, row.what, row.there or "-", here))
    cells = [[printable(cell) for cell in line] for line in lines]
    widths = [min(_WIDTH, max(len(line[i]) for line in cells)) for i in range(3)]
    return "\n".join(
        "  ".join([*(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in cells
    )


class Comparison(NamedTuple):
    """What came of comparing the metrics of two runs."""

    values: int
    """How many values one of them or both have."""
    different: int
    """How many of these are not equal, or only in one of them."""
    first: str
    """A sentence on the first of these, by step and name; empty where all are equal."""


def compare_metrics(there: bytes, here: bytes) -> Comparison:
    """Compare the content of two journals: every metric of every step, bit for bit, but for `MEASURED`.

    Of a step that a restart repeated the first value counts, as in trackers.
    """
    before, now = _values(there), _values(here)
    keys = sorted(before.keys() | now.keys())
    other = [key for key in keys if _bits(before.get(key)) != _bits(now.get(key))]
    return Comparison(len(keys), len(other), _difference(other[0], before, now) if other else "")


def _values(journal: bytes) -> dict[tuple[int, str], float]:
    values: dict[tuple[int, str], float] = {}
    for point in points_of(journal):
        if not point.key.startswith(MEASURED):
            values.setdefault((point.step, point.key), point.value)
    return values


def _bits(value: float | None) -> bytes | None:
    """All NaN are one: a journal keeps no more of them."""
    return None if value is None else struct.pack("<d", value if value == value else float("nan"))


def _difference(key: tuple[int, str], there: Mapping[Any, float], here: Mapping[Any, float]) -> str:
    step, metric = key
    told = [f"{v!r} ({metric_text(v)})" if v is not None else "missing" for v in (there.get(key), here.get(key))]
    return f"step {step}: {printable(metric)} is {told[0]} in the run and {told[1]} here"
