"""Components from outside the package: modules that the user names, whose classes join the configuration's unions.

    plugins: [my_package.my_assigner]        # in the YAML
    load_plugins(["my_package.my_assigner"]) # in Python

A class joins the union of assigners if it derives from `Assigner` and has a `name` of its own
(`name: Literal["best_k"] = "best_k"`), and so at every other union that `ByName` marks. A class that derives from
`LossTerm` becomes a key of the loss, and one that derives from `Metric` or `DataFormat` joins the list of metrics or of
formats; these have a name too (`name: ClassVar[str] = "mine"`). Nothing is imported that the user did not name: a
checkpoint only says what it needs.
"""

import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from mgdet.config_base import ByField, ByName, Config, tags
from mgdet.errors import ConfigError
from mgdet.text import first_line

logger = logging.getLogger(__name__)

GROUP = "mgdet.plugins"
"""The group of entry points in which an installed package may give its plugin a short name."""

PLACES = "MGDET_PLUGIN_PATH"
"""Variable of Ray's workers: the directories, with `:` between them, beside whose modules the driver found plugins."""

_loaded: dict[str, ModuleType] = {}
"""The modules of this process's plugins, under the names that were asked for and under their own."""
_brought: dict[tuple[str, str], list[str]] = {}
"""The names of the plugins' modules that brought a class, by the class's module and name."""


def load_plugins(names: Iterable[str], beside: Sequence[Path] = ()) -> None:
    """Import each plugin that is not loaded yet, and add its classes to the unions that they belong to.

    Args:
        names: modules, or entry points of the group `mgdet.plugins`.
        beside: directories in which a module may lie that is not on Python's path.

    Raises:
        ConfigError: a plugin cannot be found or imported, has no component, or has one whose name is taken.
    """
    _extend_path(Path(place) for place in os.environ.get(PLACES, "").split(os.pathsep) if place)
    for name in names:
        if name in _loaded and not _moved(_loaded[name], beside):
            continue
        found, module = _import(name, beside)
        added = _add(found, name, module)
        _loaded[name] = _loaded[module.__name__] = module
        logger.info("plugin %s (%s) adds %s", name, _file_of(module), ", ".join(added))


def require_plugins(names: Iterable[str], source: str) -> None:
    """See that the plugins that `source` needs are loaded, without importing any. Raises `ConfigError`."""
    if missing := [name for name in names if name not in _loaded]:
        listed = ", ".join(missing)
        raise ConfigError(
            f"{source} needs the plugin{'s' if len(missing) > 1 else ''} {listed}: pass plugins={missing} (in Python), "
            f"{' '.join(f'--plugin {name}' for name in missing)} (to evaluate, predict, replay and reproduce), or name "
            "it under plugins in the YAML. Nothing is imported that you did not name."
        )


def unnamed_plugin(component: type, named: Iterable[str]) -> str | None:
    """The plugin that brought a class, where it is not among the named ones; None for a class of mgdet's own."""
    modules = _brought.get(_identity(component), [])
    if any(_loaded[name].__name__ in modules for name in named if name in _loaded):
        return None
    return next(iter(modules), None)


def named_plugins(tree: Mapping[str, Any], source: str) -> list[str]:
    """The value of the key `plugins` of a configuration. Raises `ConfigError` where it is no list of names."""
    if not isinstance(tree, Mapping):  # of a file that is not what it should be
        raise ConfigError(f"{source}: expected keys with values, found {type(tree).__name__}")
    names = tree.get("plugins") or []
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{source}: plugins = {names!r}: expected a list of names, such as [my_package.my_assigner]")
    return list(names)


def united(*lists: Iterable[str]) -> list[str]:
    """The names of all lists, each once, in order."""
    return list(dict.fromkeys(name for names in lists for name in names))


def shipped_modules() -> list[str]:
    """Paths of the loaded plugins' packages, or single files, that are not installed and so must go to the workers."""
    paths: dict[str, None] = {}
    for module in _loaded.values():
        top = sys.modules[module.__name__.partition(".")[0]]
        path = Path(next(iter(top.__path__)) if hasattr(top, "__path__") else str(top.__file__)).resolve()
        if top.__name__ != "mgdet" and not any(path.is_relative_to(place) for place in _installed()):
            paths[str(path)] = None
    return list(paths)


def places() -> str:
    """The directories of the modules that go to the workers, as the value of the variable `PLACES`."""
    return os.pathsep.join(dict.fromkeys(str(Path(module).parent) for module in shipped_modules()))


def own_place() -> list[str]:
    """The directory from which mgdet itself is imported, where it is not installed; else none."""
    place = Path(__file__).resolve().parents[1]
    return [] if place in _installed() else [str(place)]


def _import(name: str, beside: Sequence[Path]) -> tuple[Any, ModuleType]:
    """What the name stands for, a module or one class, and its module."""
    points = list(importlib.metadata.entry_points(group=GROUP, name=name))
    if len({point.value for point in points}) > 1:
        places = " and ".join(f"{point.value} ({point.dist.name if point.dist else '?'})" for point in points)
        raise ConfigError(f"plugins: {name} is the name of several entry points, {places}: name the module instead")
    target = points[0].module if points else name
    _make_findable(target, beside)
    try:
        found = points[0].load() if points else importlib.import_module(target)
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        raise ConfigError(_not_imported(name, target, beside, error)) from error
    return found, sys.modules[target]


def _not_imported(name: str, target: str, beside: Sequence[Path], error: BaseException) -> str:
    absent = isinstance(error, ModuleNotFoundError) and f"{target}.".startswith(f"{error.name}.")
    if not absent:
        return (
            f"plugins: {name} was found but cannot be imported: {type(error).__name__}: {first_line(error)}. "
            f"`python -c 'import {target}'` shows where."
        )
    places = [f"an entry point of the group {GROUP}", "a module on Python's path"]
    places += [f"a module in {directory.resolve()}" for directory in _distinct(beside)]
    return (
        f"plugins: {name} was not found ({first_line(error)}). It was looked for as {', '.join(places)}. Correct the "
        "name, install the package, put the module beside the YAML or into the working directory, or set PYTHONPATH."
    )


def _make_findable(target: str, beside: Sequence[Path]) -> None:
    """Extend Python's path by the directory of `beside` that has the module, unless it is on the path already."""
    top = target.partition(".")[0]
    if not top.isidentifier():
        return
    local = next(_candidates(top, beside), None)
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module without a spec, such as __main__
        return
    if spec is None:
        directories = [d for d in beside if (d / top).is_dir()]  # a package without __init__.py
        directory = local.parent.parent if local and local.name == "__init__.py" else local.parent if local else None
        if directory or directories:
            _extend_path([directory or directories[0]])
    elif local and spec.origin and not local.samefile(spec.origin):
        raise ConfigError(
            f"plugins: there are two modules {top}, {spec.origin} and {local.resolve()}: rename one of them"
        )


def _extend_path(directories: Iterable[Path]) -> None:
    """Let modules be imported from these directories too, after all others: they hide nothing."""
    if new := [place for place in map(str, _distinct(directories)) if place not in sys.path]:
        sys.path += new
        importlib.invalidate_caches()


def _candidates(top: str, beside: Sequence[Path]) -> Iterator[Path]:
    for directory in beside:
        for path in (directory / top / "__init__.py", directory / f"{top}.py"):
            if path.is_file():
                yield path


def _moved(module: ModuleType, beside: Sequence[Path]) -> bool:
    """Whether another module of this name lies where this one is looked for."""
    top = sys.modules[module.__name__.partition(".")[0]]
    local = next(_candidates(top.__name__, beside), None)
    return bool(local and top.__file__ and not local.samefile(top.__file__))


@dataclass(frozen=True)
class _Kind:
    """A kind of component, and the place where those of mgdet and of plugins stand."""

    base: type
    """What a component derives from."""
    members: Callable[[], Sequence[type]]
    set_members: Callable[[list[Any]], None]
    names: Callable[[Any], tuple[str, ...]]
    """What nothing else of the kind may be called."""
    needs: Mapping[str, str]
    """Attributes that a component must have, and how to give them."""
    taken: Container[str] = ()
    """Names that are taken by something that is no component."""
    spelt: str = ".+"
    """What a name must match."""

    @property
    def called(self) -> str:
        """As messages call the kind."""
        return self.base.__name__.lstrip("_")

    def may_take(self, cls: type) -> bool:
        """Whether the class can be a component of this kind."""
        return issubclass(cls, self.base) and not inspect.isabstract(cls)


def _kinds() -> list[_Kind]:
    """All kinds. What they are made of is imported late: the command line must not wait for torch."""
    import mgdet.config  # noqa: F401  # the unions are known once it is there
    from mgdet.data.formats import FORMATS, DataFormat
    from mgdet.evaluation.evaluator import METRICS
    from mgdet.evaluation.metric import Metric

    def own_name(cls: Any) -> tuple[str, ...]:
        return (cls.name,)

    def own_name_and_numbers(cls: Any) -> tuple[str, ...]:
        return (cls.name, *(info.name for info in cls.infos))

    def setter(members: list[Any]) -> Callable[[list[Any]], None]:
        return partial(members.__setitem__, slice(None))

    name = {"name": 'a name, such as name: ClassVar[str] = "mine"'}
    summary, infos = {"summary": "a summary of one line"}, {"infos": "a MetricInfo for each number that it computes"}
    unions = [
        _Kind(union.base, partial(getattr, union, "members"), union.set_members, tags, {})
        for union in ByName.unions
        if union.base is not Config
    ]
    fields = [
        _Kind(
            *(node.base, partial(getattr, node, "added"), node.set_added, own_name, name),
            taken=dir(node.written) + list(node.written.model_fields),
            spelt="[a-z][a-z0-9_]*",
        )
        for node in ByField.nodes
    ]
    return [
        *unions,
        *fields,
        _Kind(DataFormat, lambda: FORMATS, setter(FORMATS), own_name, name | summary, taken=("shapes",)),
        _Kind(Metric, lambda: METRICS, setter(METRICS), own_name_and_numbers, name | infos),
    ]


def _add(found: Any, name: str, module: ModuleType) -> list[str]:
    """Put the classes of a module, or the one class, where components of their kind stand; what they are."""
    kinds = _kinds()
    values = [found] if inspect.isclass(found) else vars(found).values()
    classes = [v for v in dict.fromkeys(filter(inspect.isclass, values)) if _is_outside(v)]
    joining = [(kind, cls) for cls in classes for kind in _kinds_of(cls, kinds)]
    if not joining:
        raise ConfigError(
            f"plugins: {name} has no component. It must hold a class that derives from one of "
            f"{', '.join(sorted({kind.called for kind in kinds}))} and has a name of its own, such as name: "
            'Literal["best_k"] = "best_k"; in a loss term, a data format or a metric name: ClassVar[str] = "mine".'
        )
    for kind, cls in joining:
        _require_whole(kind, cls, name)
    for kind, cls in joining:
        _refuse_clash(kind, cls, [*kind.members(), *(other for k, other in joining if k is kind)], name)
    for kind, cls in joining:
        kind.set_members([*(m for m in kind.members() if not _same(m, cls)), cls])
        _brought.setdefault(_identity(cls), []).append(module.__name__)
    return [f"{kind.called} {', '.join(kind.names(cls))}" for kind, cls in joining]


def _is_outside(cls: type) -> bool:
    """Not one of mgdet's own, which the module may import."""
    return cls.__module__.partition(".")[0] != "mgdet"


def _kinds_of(cls: type, kinds: Sequence[_Kind]) -> list[_Kind]:
    """The kinds that a class joins, the nearest only: a box loss is a loss term too, but has a place of its own."""
    possible = [kind for kind in kinds if kind.may_take(cls)]
    nearest = [kind for kind in possible if not any(kind.base in other.base.__mro__[1:] for other in possible)]
    return [kind for kind in nearest if kind.needs or kind.names(cls)]  # without a tag: a base for members of a union


def _require_whole(kind: _Kind, cls: type, name: str) -> None:
    given = [key for key in kind.needs if isinstance(value := getattr(cls, key, None), str | tuple) and value]
    if missing := [key for key in kind.needs if key not in given]:
        raise ConfigError(
            f"plugins: {name}: the {kind.called} {_place(cls)} has no {' and no '.join(missing)}: give it "
            f"{' and '.join(kind.needs[key] for key in missing)}"
        )


def _refuse_clash(kind: _Kind, cls: type, members: Sequence[type], name: str) -> None:
    for own in kind.names(cls):
        others = [other for other in members if not _same(other, cls) and own in kind.names(other)]
        if others or own in kind.taken:
            by = _place(others[0]) if others else "mgdet"
            raise ConfigError(f"plugins: {name}: the name {own} of {_place(cls)} is taken by {by}: choose another one")
        if not re.fullmatch(kind.spelt, own):
            raise ConfigError(f"plugins: {name}: the name {own!r} of {_place(cls)} is not of the form {kind.spelt}")


def _same(old: type, new: type) -> bool:
    """The same class, or its earlier version where a module was imported anew."""
    return _identity(old) == _identity(new)


def _identity(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__} ({_file_of(sys.modules[cls.__module__])})"


def _file_of(module: ModuleType) -> str:
    return module.__file__ or ", ".join(module.__path__)


def _installed() -> set[Path]:
    places = sysconfig.get_paths()
    return {Path(places[key]).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")}


def _distinct(directories: Iterable[Path]) -> list[Path]:
    return list({directory.resolve(): None for directory in directories})
