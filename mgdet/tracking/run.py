"""What is said of a run between mgdet and a tracker: plain values, the same for every tracker."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

Status = Literal["FINISHED", "FAILED", "KILLED"]

COPY_OF = "mgdet.copy_of"
"""The tag of a run that was copied from another place: which one."""


@dataclass(frozen=True)
class NewRun:
    """A training, a sweep or a trial of a sweep that starts, or starts again."""

    name: str
    params: Mapping[str, object] = field(default_factory=dict)
    """Its configuration; values may be mappings of further ones."""
    config_yaml: str = ""
    """The same as YAML that `mgdet train` reads."""
    run_id: str | None = None
    """What the tracker called it at an earlier start, None at the first; the store may have lost it since."""
    place: str = ""
    """Path or URI of its directory."""
    begun_at: str = ""
    """That of its last start. A store that knows another one of the run has seen a copy go on with it since."""
    parent_run_id: str | None = None
    """For a trial: the sweep's run."""
    tags: Mapping[str, str] = field(default_factory=dict)
    headlines: tuple[str, ...] = ()
    """The metrics that a table of runs should show first."""
    searched: tuple[str, ...] | None = None
    """For a sweep: the keys that it searches."""
    data: tuple["DataSet", ...] = ()
    """The splits that it learns from and is evaluated on."""


class DataSet(NamedTuple):
    """A split of a data set that a run uses."""

    name: str
    """Of the data set and the split, `coco/train`."""
    use: Literal["training", "validation"]
    digest: str
    """Twelve digits that stand for the content of the split and its classes."""
    uri: str
    """Where the data set is."""
    counts: Mapping[str, int]
    """Numbers of images, boxes and so on."""


class Best(NamedTuple):
    """The best checkpoint of a run that has come to its end."""

    checkpoint: str
    """Path or URI of its file."""
    step: int
    """Optimizer steps done."""
    epoch: int
    """Epochs completed."""
    metrics: Mapping[str, float]
    """The headline metrics of its evaluation, which were logged at `step`."""
    data: DataSet | None = None
    """On what it was evaluated."""


class ModelFiles(NamedTuple):
    """A trained detector as files that run without torch, for a store that keeps models."""

    onnx: Path
    """The detector, with everything from pixels to detections in it."""
    runtime: Path
    """A module of Python that runs it, and needs nothing of mgdet."""
    example: bytes
    """A picture to try it on: the content of a PNG file."""


@dataclass(frozen=True)
class RunHandle:
    """The address of a run in the store of a tracker; it can be passed to any process."""

    run_id: str
    """By which the tracker knows the run; it is written into the run's record."""
    store: str = ""
    """Address of the store as the driver resolved it; may hold a password."""
    group: str = ""
    """What the store keeps the run under, where it has such groups: the id of an experiment of MLflow."""
    see: tuple[tuple[str, str], ...] = ()
    """How a person sees the run: labels, each with a command or an address."""

    def sibling(self, run_id: str) -> "RunHandle":
        """The address of another run of the same store and group."""
        return replace(self, run_id=run_id, see=())


class Child(NamedTuple):
    """The run of a sweep's trial."""

    run_id: str
    name: str
    """Of the trial."""
    running: bool
    """Whether it was never ended."""


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    """The metric under the name that the tracker accepts."""
    value: float
    """May be NaN or infinite."""
    ms: int
    """When it was logged, not when it is sent: milliseconds since 1970."""
    step: int
    """Optimizer steps done; grows, for each metric."""


class Connection(ABC):
    """A run as its sending thread sees it. Every method may raise: the thread logs that once and tries again later."""

    @abstractmethod
    def reached(self) -> Mapping[str, int]:
        """The highest step of each metric that the store has of the run. It is the only record of what has arrived."""

    @abstractmethod
    def send_metrics(self, points: Sequence[Point]) -> None:
        """Store values, each of which is new to the store unless an earlier call raised after it had stored them.

        Args:
            points: at most 1000, in the order in which they were logged.
        """

    @abstractmethod
    def send_artifact(self, path: Path, name: str) -> None:
        """Store a copy of the file `path`; `name` is relative, with `/`, and replaces what has the same name."""
