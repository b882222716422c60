"""The configurations that come with mgdet, found by name: `quickstart`, `bccd_fcos_atss`, `sweeps/quick` or `quick`.

They are the files of `configs/` in the repository, which the wheel carries as `mgdet/configs/`.
"""

import difflib
import os
from pathlib import Path

from mgdet.errors import ConfigError
from mgdet.files import require_regular
from mgdet.text import printable

EXPERIMENTS, PAPERS, SWEEPS = "*.yaml", "papers/*.yaml", "sweeps/*.yaml"
"""The kinds, each as the pattern of its files below `directory()`; papers are experiments of published rows."""
_TYPED = {EXPERIMENTS: "mgdet train", PAPERS: "mgdet train", SWEEPS: "mgdet tune"}


def directory() -> Path:
    """Where the configurations lie: in the package, or beside it in a checkout of the repository."""
    package = Path(__file__).parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def names(kind: str) -> list[str]:
    """The names of one of the kinds, sorted."""
    root = directory()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.glob(kind))


def summary(name: str) -> str:
    """The first comment of a configuration: what it is, in one line."""
    first = (directory() / f"{name}.yaml").read_text().partition("\n")[0]
    return first.removeprefix("#").strip()


def find(name: str | Path, *kinds: str) -> Path:
    """The file that is meant: `name` itself if it is one, else the configuration of these kinds that has this name.

    Args:
        name: a path, or a name with or without its directory and `.yaml`.
        kinds: some of the kinds.

    Raises:
        ConfigError: neither; the message names the nearest configuration.
    """
    if os.path.exists(name) and not os.path.isdir(name):  # unlike Path's methods, these raise nothing
        return Path(name)
    wanted = str(name).removesuffix(".yaml")
    for kind in (*kinds, *(k for k in _TYPED if k not in kinds)):
        for known in names(kind):
            if wanted not in (known, _stem(known)):
                continue
            if kind not in kinds:
                raise ConfigError(f"{name} is of another kind: run it with `{_TYPED[kind]} {_stem(known)}`.")
            return directory() / f"{known}.yaml"
    stems = [_stem(known) for kind in kinds for known in names(kind)]
    near = difflib.get_close_matches(_stem(wanted), stems, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"{name}: cannot be read: there is no such file, and no configuration of that name comes with mgdet.{hint} "
        f"Known are {', '.join(stems)}; `mgdet configs` says what they are."
    )


def find_base(base: str, beside: Path, source: str) -> Path:
    """The file that a `base` means in the file `source` of the directory `beside`.

    It is one relative to that directory, or one of mgdet's own. Raises `ConfigError` where there is neither.
    """
    own = directory() / f"{base.removesuffix('.yaml')}.yaml"
    if not os.path.exists(beside / base) and os.path.isfile(own) and own.is_relative_to(directory()):
        return own
    try:
        require_regular(beside / base)
    except OSError as error:
        file = printable(str(beside / base))
        raise ConfigError(f"{source}: base = {base!r}: {file}: cannot be read ({error}).") from None
    return beside / base


def is_override(argument: str) -> bool:
    """Whether a positional argument is a `key=value` and not the name of a file."""
    return "=" in argument and not os.path.exists(argument)


def _stem(name: str | Path) -> str:
    return Path(name).name.removesuffix(".yaml")
