"""What is said when a worker fails: who, why, and whether Ray starts the workers again."""

import logging
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayError
from ray.train import UserCallback

from mgdet.cluster.relay import speak_through_driver
from mgdet.errors import MgdetError
from mgdet.text import first_line

logger = logging.getLogger(__name__)


class Restarts(UserCallback):  # type: ignore[misc]  # ray has no types
    """Warns of each failure of the workers; Ray calls it in the process that controls the training.

    Args:
        most: restarts that the configuration allows; -1: any number.
        prefix: stands before each warning.
    """

    def __init__(self, most: int, prefix: str) -> None:
        self.most, self.prefix, self.failures = most, prefix, 0

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Log why workers failed."""
        if not self.failures:
            speak_through_driver(logging.WARNING, self.prefix)
        self.failures += 1
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
    # the others only noticed that one of them went
    shown = lost or {rank: cause for rank, cause in causes.items() if isinstance(cause, MgdetError)} or causes
    rank, cause = next(iter(shown.items()))
    others = f" (and {len(exceptions) - 1} more)" if len(exceptions) > 1 else ""
    kind = "" if isinstance(cause, MgdetError | RayError) else f"{type(cause).__name__}: "
    text = f"worker {rank}{others} failed: {kind}{first_line(cause).rstrip('.')}"
    traceback = str(exceptions[rank])
    return text if isinstance(cause, MgdetError) or "Traceback" not in traceback else f"{traceback.rstrip()}\n{text}"


def cause_of(error: BaseException) -> BaseException:
    """Why a training ended for good: an error that the user can mend, if some worker has one, else the first error."""
    causes = [root(one) for one in getattr(error, "worker_failures", {}).values()] or [root(error)]
    return next((cause for cause in causes if isinstance(cause, MgdetError)), causes[0])


def root(error: BaseException) -> BaseException:
    """The error under Ray's wrappers."""
    while inner := getattr(error, "cause", None) or getattr(error, "health_check_failure", None) or error.__cause__:
        error = inner
    return error
