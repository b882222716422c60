"""Images of a data set that cannot be read in the middle of a training: named, counted, and left out up to a limit.

Loader processes hand them to the training process as values, since an error that crosses processes arrives as the text
of a traceback.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from mgdet.data.dataset import ShardedDataset, UnreadableImage
from mgdet.data.transforms import Resize
from mgdet.errors import DataError
from mgdet.text import first_of

logger = logging.getLogger(__name__)

KEY = "data.max_bad_images"


class BadImage(NamedTuple):
    """A row of a split that gave no image, and why."""

    position: int
    image_id: int
    size: tuple[int, int]
    """(height, width) that it would have had as the network's input."""
    reason: str
    may_be_left_out: bool
    """False: something is wrong with the data set as a whole."""


class Guarded(Dataset[Any]):
    """The samples of another data set of a split, by its keys; `BadImage` in the place of one that cannot be made."""

    def __init__(self, samples: Dataset[Any], source: ShardedDataset, resize: Resize) -> None:
        self.samples, self.source, self.resize = samples, source, resize

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.samples[key]
        except DataError as error:
            position = int(getattr(key, "position", key))
            name, reason = self.source.describe(position), str(error)
            height, width = self.source.sizes[position].tolist()
            return BadImage(
                position,
                int(self.source.image_ids[position]),
                self.resize.target(height, width),
                reason if reason.startswith(name) else f"{name}: {reason}",
                isinstance(error, UnreadableImage),
            )


class BadImages:
    """Those that a training has met, in all epochs and on all workers as far as they have told each other.

    Args:
        limit: how many different ones may be left out.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.known: dict[int, str] = {}
        """Reasons by position in the split."""
        self._new: dict[int, str] = {}

    def note(self, found: Iterable[BadImage]) -> None:
        """Take in what this worker has met; each image is logged once.

        Raises:
            DataError: there are more than the limit, or the data set as a whole is wrong.
        """
        for bad in found:
            if not bad.may_be_left_out:
                raise DataError(bad.reason)
            if bad.position in self.known:
                continue
            self.known[bad.position] = self._new[bad.position] = bad.reason
            self._refuse_too_many()
            logger.warning("left out (%d of at most %d, %s): %s", len(self.known), self.limit, KEY, bad.reason)

    def take_new(self) -> dict[int, str]:
        """What this worker has met since the last call."""
        taken, self._new = self._new, {}
        return taken

    def add(self, others: Iterable[Mapping[int, str]]) -> None:
        """Take in what workers have met; given the same, all of them come to the same. Raises `DataError` as `note`."""
        for found in others:
            self.known.update(found)
        self._refuse_too_many()

    def _refuse_too_many(self) -> None:
        if len(self.known) <= self.limit:
            return
        reasons = [reason for _, reason in sorted(self.known.items())]
        if len(reasons) == 1:
            raise DataError(f"{reasons[0]} A training goes on without it only where {KEY}, here 0, allows that.")
        shown = first_of(reasons, separator="\n  ")
        raise DataError(
            f"{len(reasons)} images of the training split cannot be read, {KEY} allows {self.limit}:\n  {shown}\n"
            "Restore the data set or prepare it again; the same command goes on from the last checkpoint. With a "
            f"larger {KEY} it goes on without them."
        )
