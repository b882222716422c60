"""The base of every configuration node: frozen, and a misspelt key is an error, never ignored."""

from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


class Config(BaseModel):
    """Immutable pydantic model that refuses unknown keys; subclasses live beside the code that they configure."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())


def resolved(value: T | Literal["auto"]) -> T:
    """The `value` of a key that might have been `auto`. Raises `TypeError` where it still is."""
    if value == "auto":
        raise TypeError("the experiment still holds an `auto`: pass it through mgdet.runs.resolve.resolve first")
    return value
