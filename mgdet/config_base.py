"""The base of every configuration node: frozen, and a misspelt key is an error, never ignored."""

import math
import typing
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    field_validator,
)
from pydantic_core import CoreSchema, core_schema

from mgdet.plain_yaml import INT64

T = TypeVar("T")


class Config(BaseModel):
    """Immutable pydantic model that refuses unknown keys; subclasses live beside the code that they configure."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _numbers_can_be_computed_with(cls, value: Any) -> Any:
        """No key, and nothing in a list or mapping that is its value, is infinite, NaN or beyond 64 bits."""
        waiting = [value]
        while waiting:
            one = waiting.pop()
            if isinstance(one, float) and not math.isfinite(one):
                raise ValueError("expected a finite number")
            if isinstance(one, int) and one not in INT64:
                raise ValueError("expected an integer of at most 64 bits")
            if isinstance(one, dict):
                waiting += one.values()
            elif isinstance(one, list | tuple):
                waiting += one
        return value


class ByName:
    """Marks a union of configurations that their `name` tells apart, and that plugins may add members to.

        AssignerConfig = Annotated[MaxIoU | ATSS, ByName()]

    It must be the first annotation of a union of at least two. What is validated, and the errors, are those of
    pydantic's `Field(discriminator="name")`.
    """

    unions: ClassVar[list["ByName"]] = []
    """Every marked union of the configuration classes that have been defined."""

    def __init__(self) -> None:
        self.members: tuple[type[Config], ...] = ()
        self.base: type[Config] = Config
        """The nearest class that the members written in the union derive from: what a plugin's member must be."""
        self._adapter: TypeAdapter[Any]

    def set_members(self, members: typing.Iterable[type[Config]]) -> None:
        """Allow these members from now on, wherever the union stands."""
        self.members = tuple(members)
        union: Any = typing.Union[self.members]  # noqa: UP007  # the members are known at run time only
        self._adapter = TypeAdapter(Annotated[union, Field(discriminator="name")])

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if not self.members:
            self.set_members(typing.get_args(source))
            self.base = next(c for c in self.members[0].__mro__ if all(issubclass(m, c) for m in self.members))
            ByName.unions.append(self)
        return core_schema.no_info_plain_validator_function(lambda value: self._adapter.validate_python(value))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(self._adapter.core_schema)


def tags(model: type[BaseModel]) -> tuple[str, ...]:
    """The values of `name` by which a member of a union is chosen; none where the name is free, or there is none."""
    field = model.model_fields.get("name")
    literal = field is not None and typing.get_origin(field.annotation) is Literal
    return typing.get_args(field.annotation) if field is not None and literal else ()


def resolved(value: T | Literal["auto"]) -> T:
    """The `value` of a key that might have been `auto`. Raises `TypeError` where it still is."""
    if value == "auto":
        raise TypeError("the experiment still holds an `auto`: pass it through mgdet.runs.resolve.resolve first")
    return value
