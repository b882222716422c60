"""The errors a user can cause, each of which says what is wrong, where, what is allowed and what to do next."""

from mgdet.text import printable, redacted

MEMORY_REMEDY = (
    "Lower train.batch_size (or raise train.accumulate), data.transform.resize, data.loader.workers or "
    "data.loader.prefetch, or take a machine with more memory."
)
"""What to do where the memory of a machine or of a GPU does not suffice."""


class MgdetError(Exception):
    """Base of every error that mgdet raises on purpose; its message is meant to be read by the user as it is.

    A password in a URI is taken out of it and control characters are escaped, wherever the message came from.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(redacted(message), lines=True))


class ConfigError(MgdetError, ValueError):
    """A configuration that cannot be run."""


class DataError(MgdetError):
    """A data set, annotation file or image that cannot be used."""


class CheckpointError(MgdetError):
    """A checkpoint or pretrained weights that cannot be loaded."""


class ClusterError(MgdetError):
    """A cluster that cannot be reached, or cannot run what was asked for."""


class OwnedError(MgdetError):
    """A run, sweep or data set that another process is writing."""


class Interrupted(MgdetError):
    """Work that stopped because it was asked to; of a training, a checkpoint of the last step was written."""


class NonFiniteError(MgdetError):
    """A loss or gradient that became NaN or infinite."""


LASTING = (ConfigError, DataError, CheckpointError, NonFiniteError)
"""Errors that a second try would meet again."""
