"""The files of tracking in a run: metrics.jsonl, to which every metric is written first, and unsent artifacts."""

import contextlib
import json
import logging
import math
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from mgdet.files import may_be_written, require_regular
from mgdet.tracking.run import Point

logger = logging.getLogger(__name__)

_BLOCK = 1 << 18  # bytes of the journal in memory at a time
_INCOMING = ".incoming-"
_MOST_STEPS = 1 << 53
_MOST_SECONDS = 1e11  # since 1970: far in the future, and MLflow takes it


def fresh(points: Iterable[Point], marks: Mapping[str, int]) -> Iterator[Point]:
    """The points whose step is higher than `marks`, the highest step known of their key, without any that repeats.

    Steps of a key grow except where a restart replays them, so what was logged twice is sent once: the first value.
    """
    reached = dict(marks)
    for point in points:
        if point.step > reached.get(point.key, -(1 << 62)):
            reached[point.key] = point.step
            yield point


class Journal:
    """metrics.jsonl: one object per call, {"step", "time", "metrics"}, and "replay": true where a restart repeats.

    Each line ends with a checksum of the others, "crc": a line that was damaged is not sent as something else.

    It is the write-ahead log: a record is with the operating system before `append` returns, so a killed process
    loses nothing (a power cut may: there is no fsync, which would cost milliseconds a step). A value that is not
    finite stands as "NaN", "Infinity" or "-Infinity", strings that `float` reads, since JSON has no such numbers.

    Args:
        path: of the file.
        metric_name: gives the name that the store takes for a metric's own; the file has the metric's own.
    """

    def __init__(self, path: Path, metric_name: Callable[[str], str] = str) -> None:
        self.path = path
        self._metric_name = metric_name
        self.lost = 0  # points that could not be written
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._torn = False  # the last line has no end: a process was killed, or the disk was full, in mid-write
        self._warned = False
        self._before: dict[str, int] = {}
        for point in self.points():
            self._before[point.key] = max(point.step, self._before.get(point.key, point.step))

    def append(self, metrics: Mapping[str, float], step: int, time: float) -> None:
        """Write one record. Never raises: the first failure is logged, and `lost` counts the points of all."""
        values = {k: v if math.isfinite(v) else json.dumps(v).strip('"') for k, v in metrics.items()}
        record: dict[str, object] = {"step": step, "time": time, "metrics": values}
        if self._before and all(step <= self._before.get(self._metric_name(k), step - 1) for k in metrics):
            record["replay"] = True
        line = json.dumps({**record, "crc": _crc(record)}, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            try:
                self._write(line)
            except OSError as error:
                self.lost += len(metrics)
                if not self._warned:
                    self._warned = True
                    logger.warning("Metrics are being lost: %s cannot be written (%s).", self.path, error)

    def _write(self, line: bytes) -> None:
        if self._fd is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            may_be_written(self.path)
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            size = os.fstat(self._fd).st_size
            self._torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"
        data = b"\n" + line if self._torn else line
        written = os.write(self._fd, data)
        if written < len(data):
            self._torn = True
            raise OSError("only a part of the line was written; the disk may be full")
        self._torn = False

    def read(self, offset: int) -> tuple[list[Point], int]:
        """The points of the next complete lines from byte `offset` on, and the offset behind them.

        The offset is the same if there is no further complete line.
        """
        try:
            require_regular(self.path)
            with open(self.path, "rb") as file:
                file.seek(offset)
                lines = file.readlines(_BLOCK)
        except OSError:  # not made yet; or not readable, and then `append` has said so
            return [], offset
        if lines and not lines[-1].endswith(b"\n"):
            del lines[-1]
        return [point for line in lines for point in _parsed(line, self._metric_name)], offset + sum(map(len, lines))

    def points(self, offset: int = 0) -> Iterator[Point]:
        """All points in the complete lines from byte `offset` on."""
        while True:
            points, end = self.read(offset)
            if end == offset:
                return
            yield from points
            offset = end

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None


def points_of(data: bytes) -> Iterator[Point]:
    """All points in the complete lines of a journal's content, under the metrics' own names."""
    for line in data.splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield from _parsed(line, str)


def _crc(record: Mapping[str, object]) -> str:
    """The checksum of a line's content, which finds every change of a few bits."""
    return f"{zlib.crc32(json.dumps(record, separators=(',', ':')).encode()):08x}"


def _parsed(line: bytes, metric_name: Callable[[str], str]) -> list[Point]:
    """The points of a line; none if it is not whole, or not one that `append` writes."""
    try:
        record = json.loads(line)
        crc = record.pop("crc", None)  # lines of earlier versions have none
        step, time = record["step"], record["time"]
        values = {metric_name(k): _value(v) for k, v in record["metrics"].items()}
        known = record.keys() <= {"step", "time", "metrics", "replay"} and (crc is None or crc == _crc(record))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return []
    if not known or type(step) is not int or not 0 <= step < _MOST_STEPS:
        return []
    if not isinstance(time, int | float) or not 0 <= time < _MOST_SECONDS:
        return []
    return [Point(k, v, int(time * 1000), step) for k, v in values.items()]


def _value(value: object) -> float:
    """A value as `append` writes it: a number, or the name of one that is not finite."""
    if type(value) in (int, float):
        return float(value)  # type: ignore[arg-type]  # it is one of the two
    if value in ("NaN", "Infinity", "-Infinity"):
        return float(str(value))
    raise ValueError(f"{value!r}: not a value of a metric")


class Outbox:
    """The directory unsent_artifacts/: a copy of each artifact, under its own name, until the store has it.

    A link in its place is not followed: what lies behind it is not ours to send and to remove.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        for left in self._below(f"{_INCOMING}*"):  # copies that a killed process did not finish
            with contextlib.suppress(OSError):
                left.unlink()

    def put(self, data: bytes | str | Path, name: str) -> None:
        """Store bytes, text, or a copy of the file at a Path; an unsent artifact of the same name is replaced."""
        pure = PurePosixPath(name)
        if not pure.name or pure.is_absolute() or ".." in pure.parts:
            raise ValueError(f"artifact name {name!r}: it must be a relative path such as pictures/score_iou.png")
        if self.root.is_symlink():
            raise ValueError(f"{self.root} is a link, which is not followed")
        target = self.root / pure
        target.parent.mkdir(parents=True, exist_ok=True)
        incoming = self.root / f"{_INCOMING}{os.getpid()}-{threading.get_ident()}"
        if isinstance(data, Path):
            shutil.copyfile(data, incoming)
        else:
            incoming.write_bytes(data.encode() if isinstance(data, str) else data)
        with self._lock:
            incoming.replace(target)

    def waiting(self) -> list[Path]:
        """The files that still have to be sent, the oldest first."""
        ages: dict[Path, int] = {}
        for path in self._below("**/*"):
            # `put` makes no links: one would send a file from outside
            if path.is_file() and not path.is_symlink() and not path.name.startswith(_INCOMING):
                with contextlib.suppress(FileNotFoundError):  # sent meanwhile
                    ages[path] = path.stat().st_mtime_ns
        return sorted(ages, key=lambda path: (ages[path], path))

    def _below(self, pattern: str) -> Iterator[Path]:
        return iter(()) if self.root.is_symlink() else self.root.glob(pattern)

    def version(self, path: Path) -> tuple[int, int]:
        """Something that differs after `put` has replaced the file: its inode and time of change."""
        stat = path.stat()
        return stat.st_ino, stat.st_mtime_ns

    def sent(self, path: Path, version: tuple[int, int]) -> None:
        """Remove the file, unless it was replaced while `version` of it was being sent."""
        with self._lock:
            if self.version(path) == version:
                path.unlink()
