"""The keys of a configuration, read from its pydantic models: type, default, allowed values and meaning of each."""

import json
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mgdet.cli.keys import Key
from mgdet.config_base import tags
from mgdet.config_yaml import variants

_WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null", Any: "any value"}
_BOUNDS: tuple[tuple[type, str, str], ...] = (
    *((annotated_types.Ge, "ge", ">="), (annotated_types.Gt, "gt", ">")),
    *((annotated_types.Le, "le", "<="), (annotated_types.Lt, "lt", "<")),
)


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """The keys of a model and of the models below it, in their order; those of a union variant by variant."""
    for name, field in model.model_fields.items():
        key, models = f"{prefix}{name}", below(field.annotation)
        if not models:
            yield _leaf(key, field)
        elif len(models) == 1 and not tags(models[0]):
            if type(None) in typing.get_args(field.annotation):
                yield _leaf(key, field)._replace(type="null or the keys below")
            yield from keys_of(models[0], f"{key}.")
        else:
            yield from _union(key, field, models)


def below(annotation: Any) -> list[type[BaseModel]]:
    """The models whose keys stand below a field of this type; none below a mapping or a list, which are values."""
    if typing.get_origin(annotation) in (dict, list, tuple):
        return []
    return variants(annotation)


def summary(model: type[BaseModel]) -> str:
    """The first sentence of a model's docstring, without the full stop."""
    first = " ".join((model.__doc__ or "").split("\n\n")[0].split())
    return first.split(". ")[0].rstrip(".")


def _union(key: str, field: FieldInfo, models: Sequence[type[BaseModel]]) -> Iterator[Key]:
    """`key.name`, what all variants have alike, and then what each has of its own."""
    default = getattr(field.default, "name", None)
    allowed = {name: summary(m) for m in models for name in tags(m)}
    optional = type(None) in typing.get_args(field.annotation)
    default = "null" if optional and default is None else default
    one_of = f"{'null or ' * optional}one of {', '.join(allowed)}"
    yield Key(f"{key}.name", one_of, default, _meaning(field) or "which of these", allowed)
    of_each = {"|".join(tags(m)): [k for k in keys_of(m, f"{key}.") if k.key != f"{key}.name"] for m in models}
    first, *others = of_each.values()
    shared = [k for k in first if all(k in other for other in others)] if others else []
    yield from shared
    for name, keys in of_each.items():
        choice = f"{key}.name={name}"
        yield from (k._replace(only=", ".join(filter(None, (choice, k.only)))) for k in keys if k not in shared)


def _leaf(key: str, field: FieldInfo) -> Key:
    required = field.is_required()
    default = None if required else _as_yaml(field.get_default(call_default_factory=True))
    words = {str(word): "" for word in _literals(field.annotation)}
    return Key(key, _in_words(field.annotation, field.metadata), default, _meaning(field), words)


def _meaning(field: FieldInfo) -> str:
    return (field.description or "").rstrip(".")


def _as_yaml(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if value is PydanticUndefined:
        return ""
    if isinstance(value, float) and value == int(value) and abs(value) < 1e6:
        return f"{value:g}"
    plain = json.loads(json.dumps(value))
    return yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=1000).removesuffix("\n...\n").strip()


def _literals(annotation: Any) -> list[Any]:
    """The words that an annotation allows."""
    if annotation is bool:
        return ["true", "false"]
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    if typing.get_origin(annotation) in (dict, list, tuple):
        return []
    return [word for part in typing.get_args(annotation) for word in _literals(part)]


def _in_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _in_words(parts[0], [*parts[1:], *metadata])
    if origin is typing.Literal:
        return parts[0] if len(parts) == 1 else f"one of {', '.join(map(str, parts))}"
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(_in_words(part, metadata if part in (int, float) else ()) for part in parts)
    if origin is tuple and parts[-1] is not Ellipsis:
        return f"[{', '.join(_in_words(part) for part in parts)}]"
    if origin in (list, tuple):
        return f"list of {_in_words(parts[0])}"
    if origin is dict:
        return f"mapping of {_in_words(parts[0])} to {_in_words(parts[1])}" if not variants(parts[1]) else "mapping"
    return _WORDS.get(annotation, "mapping") + _bounds(metadata)


def _bounds(metadata: Sequence[Any]) -> str:
    """` >= 0, < 1`."""
    flat = [m for item in metadata for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
    found = [f"{sign} {getattr(m, name):g}" for kind, name, sign in _BOUNDS for m in flat if isinstance(m, kind)]
    found += [f"a multiple of {m.multiple_of}" for m in flat if isinstance(m, annotated_types.MultipleOf)]
    return f" {', '.join(found)}" if found else ""
