"""Configuration trees: read from YAML, changed by `dotted.key=value`, checked against a pydantic model.

It knows no particular model: `root` is the type of the tree. A field may be a union of models that their `name` tells
apart. Every error names the key's path, the value, what is allowed and, for a misspelt key, the nearest valid one.
"""

import copy
import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from mgdet.config_base import Extensible, tags
from mgdet.config_files import find_base
from mgdet.errors import ConfigError
from mgdet.files import absolute, read_regular
from mgdet.plain_yaml import MOST_BYTES, MOST_LEVELS, parse_yaml, require_plain
from mgdet.plugins import load_plugins, named_plugins, united
from mgdet.text import redacted

M = TypeVar("M", bound=BaseModel)
Overrides: TypeAlias = Sequence[str] | Mapping[str, Any]
"""`dotted.key=value` with YAML values, or a mapping of dotted keys to values."""


def read_tree(root: type[BaseModel], path: str | Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tree of a YAML file of type `root`, merged into that of its `base` if it names one. Raises `ConfigError`."""
    tree = read_yaml(path)
    try:
        here = absolute(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from error
    if "base" in tree and (here in above or len(above) > MOST_LEVELS):
        raise ConfigError(f"{path}: its base leads back to itself ({' -> '.join(p.name for p in (*above, here))})")
    return on_base(root, tree, str(path), Path(path).parent, (*above, here))


def on_base(
    root: type[BaseModel], tree: Mapping[str, Any], source: str, directory: Path, above: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """A tree of type `root` on top of its `base`, if it names one: a file relative to `directory`, or one of mgdet's.

    `source` stands in error messages; `above` are the files that lead here. The plugins of all of them are loaded and
    stand together in the result: what comes after is read with their components. Raises `ConfigError`.
    """
    own = plain(tree, source)
    base = own.pop("base", None)
    plugins = named_plugins(own, source)
    load_plugins(plugins, (directory, Path()))
    if base is None:
        return own
    if not isinstance(base, str):
        raise ConfigError(f"{source}: base = {base!r}: expected the name of a YAML file, relative to this one")
    start = read_tree(root, find_base(base, directory, source), above)
    if plugins := united(start.get("plugins", ()), plugins):
        own["plugins"] = plugins
    return with_settings(root, start, flatten(own), source)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping. Raises `ConfigError` for anything else, and for repeated keys."""
    try:
        text = read_regular(path, MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 from byte {error.start + 1} on; save it in that encoding") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from error
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else type(tree).__name__
        raise ConfigError(f"{path}: expected a mapping of keys to values at the top, found {found}")
    return tree


def plain(tree: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A copy of a mapping from Python, which holds nothing that a YAML file could not. Raises `ConfigError`."""
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{source}: expected keys with values, found {type(tree).__name__}")
    try:
        require_plain(dict(tree), source)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return copy.deepcopy(dict(tree))


def settings_of(overrides: Overrides) -> Iterator[tuple[str, Any, str]]:
    """Key, value and how an error calls it, of each override. Raises `ConfigError`."""
    if isinstance(overrides, Mapping):
        plain(dict(overrides), "the overrides")
        yield from ((key, value, f"{key}={_short(value)}") for key, value in overrides.items())
    else:
        yield from ((*parse_override(override), _short(override)) for override in overrides)


def parse_override(override: str) -> tuple[str, Any]:
    """Key and value of `dotted.key=value`, the value read as YAML. Raises `ConfigError`."""
    key, equals, text = override.partition("=")
    said = _short(override)
    if not equals or not key:
        raise ConfigError(f"{said}: an override is written key=value, such as train.epochs=24")
    if key.count(".") > MOST_LEVELS:
        raise ConfigError(f"{said}: the key has more than {MOST_LEVELS} levels; no key of a configuration has")
    try:
        return key, parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{said}: the value is not valid YAML: {error}") from None


def set_value(root: type[BaseModel], tree: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Put a value at a dotted key; `source` stands in the error message."""
    *parents, leaf = key.split(".")
    node = tree
    for depth, parent in enumerate(parents):
        if node.get(parent) is None:
            node[parent] = {}
        if node[parent] in _tags_at(root, parents[: depth + 1]):  # the name alone stands for a variant
            node[parent] = {"name": node[parent]}
        node = node[parent]
        if not isinstance(node, dict):
            raise ConfigError(f"{source}: {'.'.join(parents[: depth + 1])} is a value, it has no keys below it")
    if leaf == "name" and "name" in node and node["name"] != value:
        _keep_common_keys(root, node, parents, value)
    node[leaf] = value


def with_settings(
    root: type[BaseModel], tree: dict[str, Any], settings: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """A copy of a `root` tree with values at dotted keys; where one of them chooses a variant, that one comes first."""
    out = copy.deepcopy(tree)
    for key in sorted(settings, key=lambda k: not k.endswith(".name")):
        set_value(root, out, key, settings[key], f"{source}: {key}")
    return out


def validate_as(root: type[M], tree: dict[str, Any], source: str) -> M:
    """A `root` from a plain tree; `source` stands in error messages. Raises `ConfigError`."""
    try:
        return root.model_validate(_with_default_names(plain(tree, source), root))
    except ValidationError as error:
        lines = [_explain(e, root) for e in error.errors()]
        raise ConfigError(f"{source}: " + "\n".join(lines)) from None


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys; lists and empty dicts stay values."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def walk(location: Sequence[Any], root: type[BaseModel]) -> tuple[list[str], list[type[BaseModel]]]:
    """Where a pydantic error location leads: the path as users write it, and the models that stand there.

    Pydantic puts the tag of the chosen member of a union into the location; users do not write it.
    """
    path: list[str] = []
    known = False
    models: list[type[BaseModel]] = [root]
    for part in location:
        fields = {k: f for m in models for k, f in m.model_fields.items()}
        if path and known and not models:  # below a plain value pydantic goes on with the alternatives of its type
            break
        known = part in fields
        if part not in fields and any(part in tags(m) for m in models):
            models = [m for m in models if part in tags(m)]
            continue
        path.append(str(part))
        models = variants(fields.get(part))
    return path, models


def variants(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that an annotation, or a field, allows; of a field also those that plugins added."""
    if isinstance(annotation, FieldInfo):
        return variants(Annotated[annotation.annotation, None, *annotation.metadata])
    if typing.get_origin(annotation) is Annotated:
        grown = [m for mark in annotation.__metadata__ if isinstance(mark, Extensible) for m in mark.members]
        return list(grown) or variants(annotation.__origin__)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in typing.get_args(annotation) for m in variants(a)]


def _tags_at(root: type[BaseModel], path: Sequence[str]) -> list[str]:
    return [t for m in walk(path, root)[1] for t in tags(m)]


def _keep_common_keys(root: type[BaseModel], node: dict[str, Any], parents: list[str], name: Any) -> None:
    """Where another variant of a union is chosen, delete the keys and values of the old one that it does not allow."""
    for variant in walk(parents, root)[1]:
        if name in tags(variant):
            for key in [k for k in node if k != "name" and not _takes(variant, k, node[k])]:
                del node[key]


def _takes(variant: type[BaseModel], key: str, value: Any) -> bool:
    """Whether the variant has this key and allows this value, such as `auto`, of it."""
    if key not in variant.model_fields:
        return False
    try:
        variant.model_validate({key: value})
    except ValidationError as error:
        return all(e["loc"][:1] != (key,) for e in error.errors())
    return True


def _with_default_names(tree: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """`assigner: {sigma: 3}` without a name means the default assigner, here and at every other union.

    Where the default is that there is none, the first member is meant.
    """
    out = dict(tree)
    for key, field in model.model_fields.items():
        value = out.get(key)
        if not isinstance(value, dict):
            continue
        default, members = field.default, variants(field)
        if "name" not in value and isinstance(default, BaseModel) and tags(type(default)):
            value = {"name": dict(default)["name"], **value}
        elif "name" not in value and default is None and members and tags(members[0]):
            value = {"name": tags(members[0])[0], **value}
        chosen = [m for m in members if value.get("name") in tags(m)] or members[:1]
        out[key] = _with_default_names(value, chosen[0]) if chosen else value
    return out


def _explain(error: Any, root: type[BaseModel]) -> str:
    path, models = walk(error["loc"], root)
    if not path:  # keys that do not go together: the message names them
        return f"{error['msg'].removeprefix('Value error, ')}."
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        *parents, misspelt = path
        allowed = sorted({k for m in walk(error["loc"][:-1], root)[1] for k in m.model_fields})
        near = difflib.get_close_matches(misspelt, allowed, n=1)
        hint = f" Did you mean {'.'.join([*parents, near[0]])}?" if near else ""
        return f"unknown key {key}.{hint} Allowed here: {', '.join(allowed)}."
    if error["type"] == "missing":
        return f"{key} is missing: it has no default, set it in the file or as {key}=..."
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        given = error["input"].get("name") if isinstance(error["input"], dict) else error["input"]
        return f"{key}.name = {_short(given)}: allowed are {', '.join(t for m in models for t in tags(m))}."
    return f"{key} = {_short(error['input'])}: {error['msg'].removeprefix('Value error, ')}."


def _short(value: Any) -> str:
    try:
        text = redacted(repr(value))  # before it is cut
    except ValueError:  # Python writes no integer of thousands of digits
        text = f"a {type(value).__name__} of very many digits"
    return text if len(text) <= 80 else text[:77] + "..."
