"""Paths that a user gave: read only where they are ordinary files, and made absolute without surprises.

Opening a named pipe waits for somebody to write into it, a device may never end, and either may act on being opened:
every file of a user is opened here, or checked here before another library opens it.
"""

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import TypeAlias

from mgdet.errors import MgdetError

AnyPath: TypeAlias = str | os.PathLike[str]

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def require_regular(path: AnyPath) -> os.stat_result:
    """See that there is a regular file, perhaps behind links; returns its state.

    Raises `OSError` where there is none, or a directory, a named pipe, a socket or a device.
    """
    try:
        found = os.stat(path)
    except ValueError as error:  # a null character, or one that no file name can have
        raise OSError(errno.EINVAL, f"no file can have this name: {error}") from None
    _refuse_special(found, path)
    return found


def read_regular(path: AnyPath, most: int | None = None) -> bytes:
    """The content of a regular file, read without ever waiting.

    Raises `OSError` as `require_regular` does, and for a file of more than `most` bytes.
    """
    require_regular(path)
    with open(path, "rb", opener=_without_waiting) as file:
        _refuse_special(os.fstat(file.fileno()), path)  # it may have been replaced meanwhile
        data = file.read() if most is None else file.read(most + 1)
    if most is not None and len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", os.fspath(path))
    return data


def may_be_written(path: AnyPath) -> None:
    """See that writing to `path` would make a file or replace a regular one. Raises `OSError` where it would not."""
    try:
        require_regular(path)
    except FileNotFoundError:
        return


def absolute(path: AnyPath) -> Path:
    """The absolute path that is meant, its `~` and links followed. Raises `OSError` where it leads nowhere."""
    try:
        return Path(path).expanduser().resolve()
    except (RuntimeError, ValueError) as error:  # no home directory, links in a circle; a null character
        remedy = "; set HOME, or write the whole path" if os.fspath(path).startswith("~") else ""
        raise OSError(errno.EINVAL, f"the path leads nowhere: {error}{remedy}") from None


def ensure_home() -> None:
    """Set HOME for a user whose home directory nobody knows, as in containers that run under a mere number.

    Libraries ask for it when they are imported, and fail, or make a directory that is called `~`. Raises `MgdetError`
    where no directory can be found.
    """
    if not os.path.isabs(os.path.expanduser("~")):
        try:
            os.environ["HOME"] = str(_private(_own_temporary()))
        except OSError as error:
            raise MgdetError(f"this user has no home directory, and no other place: {error}. Set HOME.") from error


def cache_directory() -> Path:
    """Where mgdet may keep files between runs: `$XDG_CACHE_HOME/mgdet`, else `~/.cache/mgdet`.

    A user without a home directory that can be written to has a private directory among the temporary files instead.
    Raises `OSError` or `MgdetError` where there is no such place either.
    """
    ensure_home()
    place = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(place):
        ours = Path(place, "mgdet")
        try:
            ours.mkdir(parents=True, exist_ok=True)
        except OSError:
            pass
        else:
            if os.access(ours, os.W_OK | os.X_OK):
                return ours
    return _private(_own_temporary())


def private_directory() -> Path:
    """A directory among the temporary files that no other user can look into, the same each time where it can be."""
    try:
        return _private(_own_temporary())
    except OSError:  # somebody else has taken the name
        return Path(tempfile.mkdtemp(prefix="mgdet-"))


def _own_temporary() -> Path:
    return Path(tempfile.gettempdir(), f"mgdet-{os.getuid()}")


def _private(directory: Path) -> Path:
    """The directory, made if it is missing; it must be of this user, whom nobody else can then mislead with it."""
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise OSError(errno.EPERM, "it belongs to another user", directory)
    directory.chmod(0o700)
    return directory


def _refuse_special(found: os.stat_result, path: AnyPath) -> None:
    for is_kind, name in _KINDS:
        if is_kind(found.st_mode):
            number = errno.EISDIR if is_kind is stat.S_ISDIR else errno.EINVAL
            raise OSError(number, f"it is {name}, not a regular file", os.fspath(path))


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
