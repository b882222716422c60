"""What a tracker is: where runs are shown to people, beside the journal `metrics.jsonl` that each run has anyway."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, ClassVar, ParamSpec

from pydantic import Field

from mgdet.bounded import within
from mgdet.config_base import Config
from mgdet.lease import Ownership
from mgdet.storage import Location
from mgdet.text import first_line
from mgdet.tracking.run import Best, Child, Connection, ModelFiles, NewRun, RunHandle, Status
from mgdet.tracking.tracker import JournalTracker, Tracker

logger = logging.getLogger(__name__)
P = ParamSpec("P")


class Tracking(Config):
    """Where runs are tracked. This base keeps nothing but the journal; what derives from it has a `name`.

    Called with the handle of a run it is the tracker of the one worker that writes metrics. All other methods are the
    driver's. None but `keep_model` raises: tracking is never worth a training.
    """

    name: str
    pictures: bool = Field(
        default=True,
        description="whether a training draws: pictures, tables and the page report.html of its last evaluation, and "
        "who learns what at its first, middle and last one",
    )

    def __call__(
        self,
        handle: RunHandle | None,
        directory: Path,
        copies: Location | None = None,
        owner: Ownership | None = None,
    ) -> Tracker:
        """The tracker that writes `directory/metrics.jsonl`; only one process may write there, that of the `owner`.

        `copies` is where the run's storage keeps copies of that file, if the directory may be lost with its machine.
        """
        return JournalTracker(directory, copies=copies, owner=owner)

    def watch_machine(self, handle: RunHandle | None, node: str) -> AbstractContextManager[object]:
        """Show, within the block, how busy this machine, called `node`, is; in one process of each machine of a run."""
        return nullcontext()

    def start(self, run: NewRun) -> RunHandle | None:
        """Make the run, or reopen it; None where it is not tracked.

        To be called once for a training, whatever its workers and their restarts.
        """
        return None

    def end(self, handle: RunHandle, status: Status) -> None:
        """Set the run's final status."""

    def tag(self, handle: RunHandle, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""

    def show_best(self, handle: RunHandle, best: Best) -> None:
        """Show which checkpoint came out of a run, whose metrics have been sent. Calling it again changes nothing."""

    @property
    def wants_model(self) -> bool:
        """Whether the best checkpoint of a finished run is to be exported for `keep_model`."""
        return False

    def has_model(self, handle: RunHandle, best: Best) -> bool:
        """Whether `keep_model` has nothing left to do."""
        return False

    def keep_model(self, handle: RunHandle, best: Best, files: ModelFiles) -> None:
        """Keep the best checkpoint of a run, after `show_best`, as a model that others can load."""

    def note(self, handle: RunHandle, report: str, text: str) -> None:
        """Describe a run by a text and a link to its artifact `report`; a description that a person wrote stays."""

    def children(self, parent: RunHandle) -> list[Child]:
        """The runs of the trials of a sweep."""
        return []

    def close_child(
        self,
        handle: RunHandle,
        status: Status,
        tags: Mapping[str, str],
        directory: Path,
        copies: Location | None = None,
    ) -> None:
        """Send what is left of a trial whose processes are gone, tag its run, and end it.

        What is left lies in `directory`, or in the `copies` that its storage has of that.
        """


class StoreTracking(Tracking):
    """Tracking in a store, which may be away: what a tracker of one's own derives from.

    It implements `open` and `connect`, and the other methods below them where its store has such a thing. They may
    raise anything, and may never return: each call runs in a thread of its own and is given up after `call_timeout_s`.
    A `Connection` is made and used in one thread. Sent is what stands in the journal: a store that was away, a killed
    process and steps that a restart repeats are no concern of theirs.
    """

    title: ClassVar[str]
    """The store as messages call it."""

    enabled: bool = Field(default=True, description="false: the same as the tracker none")
    send_every_s: float = Field(default=1.0, gt=0, le=60, description="metrics are collected this long, then sent")
    retry_after_s: tuple[Annotated[float, Field(ge=0, le=3600)], ...] = Field(
        default=(5.0, 15.0, 60.0), min_length=1, description="waits after failures to send; the last one repeats"
    )
    flush_timeout_s: float = Field(default=30.0, ge=0, le=600, description="bound on sending the rest at the end")
    call_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="deadline of a whole call, such as making the run, with all its requests, retries and pauses",
    )

    @abstractmethod
    def open(self, run: NewRun) -> RunHandle:
        """Make the run, or reopen `run.run_id` if the store still has it; called in the driver.

        A trial that the parent already has under this name is to be reopened as well: the driver may have been killed
        before it could note the id. Only this method may prepare the store itself.
        """

    @abstractmethod
    def connect(self, handle: RunHandle) -> Connection:
        """The run for the sending thread, in whichever process and directory a worker has."""

    def finish(self, handle: RunHandle, status: Status) -> None:
        """Note the run's final status."""

    def set_tags(self, handle: RunHandle, tags: Mapping[str, str]) -> None:
        """Note tags of a run, over those of the same names."""

    def set_best(self, handle: RunHandle, best: Best) -> None:
        """Note the best checkpoint, unless it is noted already."""

    def find_model(self, handle: RunHandle, best: Best) -> bool:
        """Whether `store_model` has nothing left to do."""
        return False

    def store_model(self, handle: RunHandle, best: Best, files: ModelFiles) -> None:
        """Store a model; what is stored already is left as it is."""

    def set_note(self, handle: RunHandle, report: str, text: str) -> None:
        """Note a description with a link to an artifact, unless a person has written one."""

    def find_children(self, parent: RunHandle) -> list[Child]:
        """All runs whose `parent_run_id` was this one."""
        return []

    def metric_name(self, name: str) -> str:
        """The name under which the store takes a metric; class names in `val/AP/<class>` may hold anything."""
        return name

    def where(self, handle: RunHandle | None = None) -> str:
        """The store, and where it is, as messages call it: without a password. Without a handle before `open`."""
        return self.title

    def __call__(
        self,
        handle: RunHandle | None,
        directory: Path,
        copies: Location | None = None,
        owner: Ownership | None = None,
    ) -> Tracker:
        """See `Tracking`; without a handle nothing is sent."""
        return JournalTracker(directory, self, handle, copies, owner)

    def start(self, run: NewRun) -> RunHandle | None:
        """See `Tracking`. None where the store is away, with a warning: the training goes on, the journal has all."""
        if not self.enabled:
            return None
        try:
            return within(self.call_timeout_s, self.open, run)
        except Exception as error:  # whatever a store can raise: driver, network, permission, version of its schema
            logger.warning(
                "%s cannot be used (%s). Training goes on; its metrics are written to metrics.jsonl beside the run, "
                "and are sent when the same run is started again with %s in reach.",
                self.where(),
                first_line(error),
                self.title,
            )
            return None

    def end(self, handle: RunHandle, status: Status) -> None:
        """See `Tracking`; a store that is away costs a warning."""
        self._try(handle, f"ended as {status}", self.finish, handle, status)

    def tag(self, handle: RunHandle, tags: Mapping[str, str]) -> None:
        """See `Tracking`; a store that is away costs a warning."""
        self._try(handle, "tagged", self.set_tags, handle, tags)

    def show_best(self, handle: RunHandle, best: Best) -> None:
        """See `Tracking`; a store that is away costs a warning, and the next start of the run notes it."""
        self._try(handle, "given its best checkpoint", self.set_best, handle, best)

    def has_model(self, handle: RunHandle, best: Best) -> bool:
        """See `Tracking`; False where the store is away."""
        try:
            return within(self.call_timeout_s, self.find_model, handle, best)
        except Exception as error:
            logger.warning("%s does not tell the model of run %s (%s).", self.title, handle.run_id, first_line(error))
            return False

    def keep_model(self, handle: RunHandle, best: Best, files: ModelFiles) -> None:
        """See `Tracking`. It has ten times `call_timeout_s`; raises what the store raises, and `TimeoutError`."""
        within(10 * self.call_timeout_s, self.store_model, handle, best, files)

    def note(self, handle: RunHandle, report: str, text: str) -> None:
        """See `Tracking`; a store that is away costs a warning."""
        self._try(handle, "described", self.set_note, handle, report, text)

    def _try(self, handle: RunHandle, done: str, call: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Make a call to the store within its deadline; where it fails, warn that the run could not be `done`."""
        try:
            within(self.call_timeout_s, call, *args, **kwargs)
        except Exception as error:
            logger.warning("%s run %s could not be %s: %s", self.title, handle.run_id, done, first_line(error))

    def children(self, parent: RunHandle) -> list[Child]:
        """See `Tracking`; none, with a warning, where the store is away."""
        try:
            return within(self.call_timeout_s, self.find_children, parent)
        except Exception as error:
            logger.warning("%s does not tell the runs of the trials (%s).", self.title, first_line(error))
            return []

    def close_child(
        self,
        handle: RunHandle,
        status: Status,
        tags: Mapping[str, str],
        directory: Path,
        copies: Location | None = None,
    ) -> None:
        """See `Tracking`."""
        if copies or (directory / "metrics.jsonl").exists():
            self(handle, directory, copies).close()
        self.tag(handle, tags)
        self.end(handle, status)
