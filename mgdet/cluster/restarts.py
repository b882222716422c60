"""What is said when a worker fails: who, why, and whether Ray starts the workers again."""

import logging
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayError
from ray.train import UserCallback

from mgdet.cluster.metrics import RESTARTS, Exported
from mgdet.cluster.relay import speak_through_driver
from mgdet.errors import MgdetError
from mgdet.text import first_line

logger = logging.getLogger(__name__)


class Restarts(UserCallback):  # type: ignore[misc]  # ray has no types
    """Warns of each failure of the workers; Ray calls it in the process that controls the training.

    Args:
        most: restarts that the configuration allows; -1: any number.
        run: its name.
        trial: of a sweep: the name stands before each warning.
    """

    def __init__(self, most: int, run: str, trial: bool = False) -> None:
        self.most, self.prefix, self.failures = most, f"{run}: " if trial else "", 0
        self._exported = Exported(run)

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Show the number of restarts, which is 0 in most trainings."""
        self._exported.set(RESTARTS, self.failures)

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Log why workers failed.

        Raises:
            MgdetError: that of a worker. Ray ends a training whose callback fails: it stops the other workers, wherever
                they wait, and starts none again, which would only meet the same error.
        """
        for cause in map(root, worker_exceptions.values()):
            if isinstance(cause, MgdetError):
                raise cause
        if not self.failures:
            speak_through_driver(logging.WARNING, self.prefix)
        self.failures += 1
        self._exported.set(RESTARTS, self.failures)
        of = f" of {self.most}" if self.most >= 0 else ""
        again = f"Ray restarts the workers (restart {self.failures}{of})" if self.goes_on else "no restart is left"
        logger.warning("%s; %s", failure(worker_exceptions), again)

    @property
    def goes_on(self) -> bool:
        """Whether Ray starts the workers again after the last failure."""
        return self.most < 0 or self.failures <= self.most


def failure(exceptions: Mapping[int, Exception]) -> str:
    """Which workers failed and why; an error of the program itself comes with its traceback."""
    causes = {rank: root(error) for rank, error in exceptions.items()}
    lost = {rank: cause for rank, cause in causes.items() if isinstance(cause, RayError)}
    rank, cause = next(iter((lost or causes).items()))  # the others only noticed that one of them went
    others = f" (and {len(exceptions) - 1} more)" if len(exceptions) > 1 else ""
    kind = "" if isinstance(cause, RayError) else f"{type(cause).__name__}: "
    text = f"worker {rank}{others} failed: {kind}{first_line(cause).rstrip('.')}"
    traceback = str(exceptions[rank])
    return f"{traceback.rstrip()}\n{text}" if "Traceback" in traceback else text


def cause_of(error: BaseException) -> BaseException:
    """Why a training ended for good: an error that the user can mend, if some worker has one, else the first error."""
    causes = [root(one) for one in getattr(error, "worker_failures", {}).values()] or [root(error)]
    return next((cause for cause in causes if isinstance(cause, MgdetError)), causes[0])


def root(error: BaseException) -> BaseException:
    """The error under Ray's wrappers; of an error of mgdet's own not what it was made from."""
    while not isinstance(error, MgdetError) and (inner := _under(error)) is not None:
        error = inner
    return error


def _under(error: BaseException) -> BaseException | None:
    wrapped = ("cause", "health_check_failure", "controller_failure")
    return next((inner for name in wrapped if (inner := getattr(error, name, None))), error.__cause__)
