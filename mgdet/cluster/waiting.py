"""Says that a training waits for a node: Ray waits without a word and without a limit for room for its workers."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mgdet.runs.config import ClusterConfig
from mgdet.runs.resources import Resources
from mgdet.text import first_line

logger = logging.getLogger(__name__)

EVERY_S = 30.0
"""Seconds between two looks at the nodes."""
LEAVE_S = 5.0
"""The longest wait for a look that is under way at the end."""


@contextmanager
def shortage_told(
    config: ClusterConfig, look: Callable[[], Resources], every_s: float = EVERY_S, beside: int = 0
) -> Iterator[None]:
    """Within the block, warn when nodes are so few that not even the smallest number of workers fits, and say when
    they fit again.

    Args:
        config: resolved.
        look: gives the nodes that are alive.
        every_s: seconds between two looks.
        beside: processes of the size of a worker that are needed beside the workers.
    """
    over = threading.Event()
    arguments = (config, config.fewest + beside, look, every_s, over)
    thread = threading.Thread(target=_watch, args=arguments, name="mgdet-shortage", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(LEAVE_S)  # a look that came after Ray's end would start another Ray


def _watch(
    config: ClusterConfig, fewest: int, look: Callable[[], Resources], every_s: float, over: threading.Event
) -> None:
    short = False
    while not over.wait(every_s):
        try:
            room = look().slots(config)
        except Exception as error:  # the cluster is going, which others say
            logger.debug("the nodes cannot be looked at: %s", first_line(error))
            continue
        if short != (room < fewest):
            short = not short
            if short:
                logger.warning(
                    "the cluster has room for %d workers, and the training needs at least %d: it waits for a node, as "
                    "long as it takes. Nothing that was saved is lost. To go on with fewer, stop it and lower "
                    "cluster.workers",
                    room,
                    fewest,
                )
            else:
                logger.info("the cluster has room for %d workers again", room)
