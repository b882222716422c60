"""The base of every configuration node: frozen, and a misspelt key is an error, never ignored."""

import math
import typing
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler  # pydantic 2.10 has it only there
from pydantic_core import CoreSchema, core_schema

from mgdet.plain_yaml import INT64

T = TypeVar("T")


class Config(BaseModel):
    """Immutable pydantic model that refuses unknown keys; subclasses live beside the code that they configure."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    @model_validator(mode="wrap")
    @classmethod
    def _no_switch_is_a_number(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """`epochs: yes` is no 1, although Python says so."""
        node = handler(data)
        for key, value in data.items() if isinstance(data, dict) else ():
            taken = getattr(node, key, None)
            pairs = zip(value, taken, strict=False) if isinstance(value, list) and isinstance(taken, tuple) else ()
            for given, number in ((value, taken), *pairs):
                if isinstance(given, bool) and type(number) in (int, float):
                    raise ValueError(
                        f"{key}: expected a number, found {str(given).lower()}, as YAML reads yes, no, on, off too"
                    )
        return node

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


class NamedConfig(Config):
    """A member of a union that is written as its `name` alone where it has no other key."""

    name: str

    def __str__(self) -> str:
        return self.name

    @model_serializer(mode="wrap")
    def _as_name(self, handler: SerializerFunctionWrapHandler) -> Any:
        tree = handler(self)
        return self.name if set(tree) == {"name"} else tree


class Extensible:
    """Marks a place in the configuration that plugins may add to. Classes that derive from it say how."""

    def __init__(self) -> None:
        self.members: tuple[type[Config], ...] = ()
        """The classes that the place allows now."""
        self._adapter: TypeAdapter[Any]

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(self._adapter.core_schema)


class ByName(Extensible):
    """Marks a union of configurations that their `name` tells apart, and that plugins may add members to.

        AssignerConfig = Annotated[MaxIoU | ATSS, ByName()]

    It must be the first annotation of a union of at least two. What is validated, and the errors, are those of
    pydantic's `Field(discriminator="name")`.
    """

    unions: ClassVar[list["ByName"]] = []
    """Every marked union of the configuration classes that have been defined."""

    def __init__(self) -> None:
        super().__init__()
        self.base: type[Config] = Config
        """The nearest class that the members written in the union derive from: what a plugin's member must be."""

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


class ByField(Extensible):
    """Marks a configuration whose fields are components, and that plugins may add fields to.

        loss: Annotated[LossConfig, ByField(LossTerm)] = LossConfig()

    A component is added as a field of its `name`, which is None where it is not configured, and is then not dumped.

    Args:
        base: what a plugin's component must derive from.
    """

    nodes: ClassVar[list["ByField"]] = []
    """Every marked configuration of the classes that have been defined."""

    def __init__(self, base: type[Config]) -> None:
        super().__init__()
        self.base = base
        self.added: tuple[type[Config], ...] = ()
        """What plugins have added."""
        self.written: type[Config] = Config
        """The class without what was added."""

    def set_added(self, components: typing.Iterable[type[Config]]) -> None:
        """Have these fields from now on, beside those that are written in the class."""
        self.added = tuple(components)
        fields: dict[str, Any] = {c.name: (c | None, _field_of(c)) for c in self.added}  # type: ignore[attr-defined]  # a plugin's components have a name
        grown: type[Config] = self.written
        if fields:
            grown = create_model(grown.__name__, __base__=grown, __doc__=grown.__doc__, **fields)
        self.members = (grown,)
        self._adapter = TypeAdapter(grown)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if not self.members:
            self.written = source
            self.set_added(())
            ByField.nodes.append(self)
        return core_schema.no_info_plain_validator_function(
            self._validated,
            serialization=core_schema.plain_serializer_function_ser_schema(self._dumped, info_arg=True),
        )

    def _validated(self, value: Any) -> Any:
        """Also of an instance from before something was added."""
        return self._adapter.validate_python(dict(value) if isinstance(value, self.written) else value)

    def _dumped(self, value: Any, info: SerializationInfo) -> dict[str, Any]:
        tree: dict[str, Any] = value.model_dump(mode=info.mode)
        return {key: v for key, v in tree.items() if v is not None or key in self.written.model_fields}


def _field_of(component: type[Config]) -> Any:
    summary = " ".join((component.__doc__ or component.__name__).split("\n\n")[0].split()).rstrip(".")
    return Field(default=None, description=f"{summary}; null: none")


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
