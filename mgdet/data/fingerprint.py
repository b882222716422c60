"""What a training learned from, in a few lines: its classes in order, and the content of its splits.

Runs, sweeps, checkpoints and captures keep the fingerprint of their data set, because another one may lie at the same
place tomorrow: prepared again, from other annotations, with classes in another order.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from mgdet.data.schema import CategoryId, Checksum, Manifest, Record, SplitInfo
from mgdet.records import Count, RecordError, first_problem
from mgdet.text import first_of

Fingerprint: TypeAlias = dict[str, Any]
"""JSON: `classes` is `[[id, name], ...]` in order of the label; `splits` has a dictionary for each split by name, with
numbers of `images`, `boxes`, `crowd` and `negatives`, and the SHA-256 of its `content` (None in data sets that were
prepared before contents had a checksum)."""

_SHOWN = 6  # lines of each kind


def rows_checksum(rows: Iterable[Record]) -> str:
    """SHA-256 of everything that the rows hold, the bytes of the images included, whatever the file's encoding."""
    digest = hashlib.sha256()
    for row in rows:
        numbers = [int(row.image_id), row.file_name, int(row.width), int(row.height), len(row.image), len(row.boxes)]
        digest.update(json.dumps(numbers).encode())
        digest.update(row.image)
        for values, kind in ((row.boxes, "<f8"), (row.labels, "<i4"), (row.iscrowd, "?"), (row.area, "<f8")):
            digest.update(np.ascontiguousarray(values, dtype=kind).tobytes())
    return digest.hexdigest()


def fingerprint(manifest: Manifest, splits: Sequence[str]) -> Fingerprint:
    """The fingerprint of these splits, which the data set must have."""
    return {
        "classes": [[c.id, c.name] for c in manifest.categories],
        "splits": {name: _of_split(manifest.splits[name]) for name in splits},
    }


class _KnownSplit(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    images: Count
    boxes: Count
    crowd: Count = 0
    negatives: Count = 0
    content: Checksum | None = None


class _Known(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    classes: list[tuple[CategoryId, str]] = []
    splits: dict[str, _KnownSplit] = {}


def recorded(value: object) -> Fingerprint:
    """The fingerprint that a record or checkpoint holds, which may know less than one of today.

    Raises `RecordError` where it could not have been written there.
    """
    try:
        _Known.model_validate_json(text := json.dumps(value))
    except ValidationError as error:
        raise RecordError(f"the data set's fingerprint {first_problem(error)}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordError(f"the data set's fingerprint is none: {error}") from error
    return dict(json.loads(text))


def data_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """One sentence for each difference between the fingerprint `there`, of a record, and `here`, of the data now.

    What only the data now know is not compared: a record of an earlier version knows less.
    """
    lines = _of_classes(there.get("classes"), here.get("classes"))
    before, now = there.get("splits", {}), here.get("splits", {})
    for name in [name for name in now if name in before]:
        lines += _of_splits(name, before[name], now[name])
    return lines


def proven_equal(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether two fingerprints are of the same data, by the checksums of all splits of `here`."""
    known = there.get("splits", {})
    proofs = [known.get(name, {}).get("content") for name in here["splits"]]
    return bool(proofs) and all(proofs) and "classes" in there and not data_differences(there, here)


def _of_split(info: SplitInfo) -> dict[str, Any]:
    counts = {"images": info.images, "boxes": info.boxes, "crowd": info.crowd, "negatives": info.negatives}
    if not all(len(shard.checksums) == len(shard.row_groups) for shard in info.shards):
        return {**counts, "content": None}
    # With the cuts between row groups, which decide the order of a training's epochs
    rows = [[n, checksum] for s in info.shards for n, checksum in zip(s.row_groups, s.checksums, strict=True)]
    return {**counts, "content": hashlib.sha256(json.dumps(rows).encode()).hexdigest()}


def _of_classes(there: Any, here: Any) -> list[str]:
    if not there or not here or there == here:
        return []
    before, now = ({str(name): (label, id_) for label, (id_, name) in enumerate(each)} for each in (there, here))
    lines = []
    for name, (label, id_) in before.items():
        if name not in now:
            lines.append(f"class {name!r} (label {label}) is no longer there")
        elif now[name][0] != label:
            lines.append(f"class {name!r} was label {label} (id {id_}) and is label {now[name][0]} (id {now[name][1]})")
        elif now[name][1] != id_:
            lines.append(f"class {name!r} had id {id_} and has id {now[name][1]}")
    lines += [f"class {name!r} (label {label}) is new" for name, (label, _) in now.items() if name not in before]
    if not lines:  # two classes of one name
        lines = [f"the classes were {there} and are {here}"[:600]]
    return _limited(lines, "classes")


def _of_splits(name: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    known = [k for k in here if there.get(k) is not None and here[k] is not None and there[k] != here[k]]
    counts = [f"{there[k]} {k} and has {here[k]}" for k in known if k != "content"]
    if counts:
        return [f"split {name!r} had {', '.join(counts)}"]
    if there.get("content") and not here.get("content"):
        return [f"split {name!r} had checksums and has none now: an earlier version of mgdet has prepared it again"]
    if known:
        return [
            f"split {name!r} has as many images and boxes, but another content "
            f"({str(there['content'])[:12]} there, {here['content'][:12]} now)"
        ]
    return []


def _limited(lines: Sequence[str], what: str) -> list[str]:
    return [*lines[:_SHOWN], f"{len(lines) - _SHOWN} more {what} differ"] if len(lines) > _SHOWN else list(lines)


def short(data: Mapping[str, Any]) -> str:
    """Twelve digits that stand for a whole fingerprint, for logs and tables."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def describe_data(data: Mapping[str, Any]) -> str:
    """A fingerprint as a line of text."""
    names = [f"{name}" for _, name in data["classes"]]
    splits = ", ".join(f"{name} {s['images']} images, {s['boxes']} boxes" for name, s in data["splits"].items())
    return f"{short(data)}: {len(names)} classes ({first_of(names, _SHOWN)}); {splits}"
