"""Whether Ray can start on this machine: found out before it, or soon after, instead of waiting without a word."""

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from mgdet.errors import ClusterError

LEAST_FREE = 64 << 20
"""Bytes: the logs of a short session take some 15 MB, and Ray's processes die or hang where they cannot write them."""
LEAST_FILES = 500
"""A session makes some hundred files, sockets and directories."""
LONGEST_SOCKET = 107
"""Bytes of the path of a socket, in Linux."""
_PROBE = 1 << 20
START_S = 60.0
"""The longest wait for the first process that Ray starts; it takes seconds, also on a busy machine."""


def require_room(directory: Path) -> None:
    """See that Ray's session directory, which is made, has room: by what the file system says, and by writing.

    Quotas are in no statistics of a file system. Raises `ClusterError`, also where the path is too long for Ray's
    sockets in it.
    """
    longest = LONGEST_SOCKET - len(f"/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store")
    if (length := len(os.fsencode(directory))) > longest:
        raise ClusterError(
            f"Ray cannot use its session directory {directory}: the path has {length} bytes, and the sockets that Ray "
            f"makes in it leave it {longest} at most. Set RAY_TMPDIR to a shorter path, such as /tmp."
        )
    probe = directory / f".mgdet-{uuid.uuid4().hex}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        found = os.statvfs(directory)
        free, files = found.f_bavail * found.f_frsize, found.f_favail
        if free < LEAST_FREE or (found.f_files and files < LEAST_FILES):  # some file systems count no files: 0
            raise _no_room(directory, f"it has {free / 2**20:,.0f} MiB and room for {files:,} files")
        try:
            probe.write_bytes(b"\0" * _PROBE)
        finally:
            with suppress(OSError):
                probe.unlink()
    except OSError as error:
        raise _no_room(directory, str(error)) from error


def require_start(directory: Path, seconds: float = START_S) -> None:
    """See that the connected cluster starts a process. Raises `ClusterError` after `seconds`."""
    import ray

    answer: Any = ray.remote(num_cpus=0)(_process).remote()
    try:
        ray.get(answer, timeout=seconds)
    except ray.exceptions.RayError as error:
        why = f"Ray has started no process within {seconds:g} s ({type(error).__name__})"
        raise _no_room(directory, why) from error


def _process() -> int:
    return os.getpid()


def _no_room(directory: object, found: str) -> ClusterError:
    return ClusterError(
        f"Ray cannot use its session directory {directory}: {found}. It needs {LEAST_FREE >> 20} MiB and {LEAST_FILES} "
        "files at the least, and more for long runs. Make room there (sessions of before are in it, and may be "
        "removed), or set RAY_TMPDIR to a directory on another disk."
    )
