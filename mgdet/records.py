"""Records: the small JSON files that say what was done, such as `run.json`, each with a checksum of its content.

A record is data from outside: a disk, a person or another program may have changed it. `unseal` gives its content only
if that is what `seal` was given. Whoever reads one must also check that it could have been written there: `Count`,
`Metrics` and a model that forbids other keys do most of that.

The checksum covers the content, not the bytes, so that a record may be indented otherwise. A record holds both `sealed`
and `checksum`, and one without the other is refused: damage to one bit cannot make a sealed record look like one that
was written before records had a checksum. Those are still read.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

SEAL = 1
"""Version of the checksum's rule, in the key `sealed`."""
LARGEST = 256 << 20
"""Bytes of the largest record that is read. The largest that is written lists 1000 dropped boxes."""

Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 53)]
"""A step, an epoch or a size: whole, not negative, and exact also where a reader knows only floats."""

M = TypeVar("M", bound=BaseModel)


def _nan_for_null(value: Any) -> Any:
    return {k: math.nan if v is None else v for k, v in value.items()} if isinstance(value, dict) else value


Metrics = Annotated[dict[str, float], BeforeValidator(_nan_for_null)]
"""Values by name. JSON has no number for one that is not finite: it is written as null and read as NaN."""


class RecordError(ValueError):
    """A record that is damaged, was changed, or is not one; the message is the end of a sentence."""


def plain(value: Any) -> Any:
    """The value as JSON holds it: lists for tuples, strings for keys, null for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def seal(content: Mapping[str, Any]) -> bytes:
    """The record of a content, which must not use the keys `sealed` and `checksum`."""
    sealed = {"sealed": SEAL, **plain(content)}
    return json.dumps({**sealed, "checksum": _checksum(sealed)}, indent=1).encode()


def unseal(data: bytes) -> dict[str, Any]:
    """The content of a record. Raises `RecordError` where it is not what `seal` was given."""
    if len(data) > LARGEST:
        raise RecordError(f"it has {len(data)} bytes, no record has more than {LARGEST}")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON: {error}") from error
    if not isinstance(content, dict):
        raise RecordError(f"it holds a {type(content).__name__}, expected an object")
    if "sealed" not in content and "checksum" not in content:
        return content
    if content.get("sealed") != SEAL and content.get("checksum") == _checksum_or_none(content):
        raise RecordError(
            f"sealed = {content.get('sealed')!r}: another version of mgdet wrote it, this one reads {SEAL}"
        )
    if content.get("sealed") != SEAL or content.get("checksum") != _checksum_or_none(content):
        raise RecordError("its checksum does not fit its content: it was damaged, or changed after it was written")
    return {k: v for k, v in content.items() if k not in ("sealed", "checksum")}


def read_as(model: type[M], data: bytes) -> M:
    """The content of a record as a model. Raises `RecordError` where it is damaged, or not of this model."""
    try:
        return model.model_validate_json(json.dumps(unseal(data)))
    except ValidationError as error:
        raise RecordError(first_problem(error)) from error


def first_problem(error: ValidationError) -> str:
    """Where the first error of a validation is, and what it is: `at metrics.val/AP: ...`."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the record itself"
    return f"at {where}: {first['msg']}"


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum_or_none(content: Mapping[str, Any]) -> str | None:
    """The checksum of what a record holds beside it; None where it holds what no record can."""
    try:
        return _checksum({k: v for k, v in content.items() if k != "checksum"})
    except (ValueError, RecursionError):
        return None
