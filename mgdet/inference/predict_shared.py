"""A prediction in portions of files, which processes share: what `predict` writes, but no pictures."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mgdet.errors import DataError
from mgdet.files import absolute
from mgdet.inference.find import Images, find_images, is_many
from mgdet.inference.load import Read, build_detector
from mgdet.inference.photos import Photo, Reader, groups, name_of
from mgdet.inference.predict import Finder, Options, Predicted, damaged
from mgdet.inference.written import Part, Results, coco_results, described
from mgdet.lease import OWNER, claims, owned
from mgdet.portions import PLAN, PORTIONS, SIZE, Done, Portion, Portions, Spread, Work, carry_out, not_seen
from mgdet.storage import File, Location, as_file, locate

logger = logging.getLogger(__name__)


def portions_of(files: Images, batch_size: int) -> list[Portion]:
    """The files in portions of about `SIZE`; a video or a table is one of its own.

    Their sizes are multiples of the batch size. The content is address, name and id of each file: an absolute path or a
    URI, how results call it, and null where ids are counted when the results are put together.
    """
    size = max(batch_size, SIZE // batch_size * batch_size)
    found: list[list[tuple[str, str, int | None]]] = []
    full = True
    for index, file in enumerate(files.paths):
        alone = is_many(file.name)
        if full or alone:
            found.append([])
        found[-1].append((_address(file), name_of(file), None if files.ids is None else files.ids[index]))
        full = alone or len(found[-1]) == size
    return [Portion(number, len(content), content) for number, content in enumerate(found)]


def _address(file: File) -> str:
    return str(file) if isinstance(file, Location) else str(absolute(file))


class Prediction(Work):
    """Detects in the files of a portion.

    Args:
        read: the checkpoint.
        options: how it detects.
        kept: where the results are kept.
    """

    def __init__(self, read: Read, options: Options, kept: Portions) -> None:
        self.read, self.options, self.kept = read, options, kept

    def begin(self, device: torch.device) -> None:
        """Build the detector. Raises what `load_detector` raises."""
        self._find = Finder(build_detector(self.read, device=device), self.options)

    def __call__(self, portion: Portion) -> Done:
        """Detect in a portion and keep what is found.

        Raises:
            DataError: the results cannot be written, or this machine does not see a file that was listed.
        """
        warnings: list[str] = []
        reader = Reader(self._find.max_pixels, self.options.every, warnings.append)
        images: list[dict[str, Any]] = []
        found: list[dict[str, Any]] = []
        for photos in groups(_photos(portion, reader), self._find.at_once):
            predicted = self._find(photos)
            images += described(photos, predicted, None)
            found += coco_results(photos, predicted)
        lost = {"unreadable": reader.unreadable, "damaged": reader.damaged}
        self.kept.write(portion.number, json.dumps({"images": images, "found": found, **lost}).encode())
        return Done(portion.images, tuple(warnings))


def _photos(portion: Portion, reader: Reader) -> Iterator[Photo]:
    for address, name, number in portion.content:
        file = as_file(address)
        if isinstance(file, Path) and not os.path.lexists(file):
            raise not_seen(file)
        yield from reader.read(file, number, name)


class PredictionPlan:
    """A prediction in portions; see `run`.

    Args:
        read: from `read_detector`; its plugins must be loaded.
        inputs: as for `predict`; whoever does a portion must see them too.
        out: a directory, which must be empty, absent or of an earlier call: a local path or a `pyarrow.fs` URI.
        ids: as for `predict`.
        options: how it detects.

    Raises:
        DataError: as for `predict`.
        CheckpointError: as for `load_detector`.
    """

    def __init__(self, read: Read, inputs: Sequence[str], out: str, *, ids: str | None = None, options: Options):
        if options.draw:
            raise DataError("--draw is for one process: leave out --workers, or draw from detections.json afterwards.")
        trained = build_detector(read, device=torch.device("cpu"))
        Finder(trained, options)
        logger.info("%s", trained)
        self.read, self.categories, self.options = read, trained.categories, options
        self.out, self.place = out, locate(out)
        _require_own(self.place, out)
        self.files = find_images(inputs, self.place, ids)
        self.portions = portions_of(self.files, options.batch_size)

    def run(self, spread: Spread) -> Predicted:
        """Detect, and write the results. After a stop the same plan goes on; the results do not depend on `spread`.

        Raises:
            DataError: `out` is of other work, or cannot be written; or no image can be read.
            Interrupted: it was asked to stop, and keeps what was found.
            OwnedError: another process writes to `out`.
        """
        about = {
            "checkpoint": self.read.path,
            "weights": self.read.digest(),
            "inputs": hashlib.sha256(json.dumps(self.portions).encode()).hexdigest(),
            **self.options._replace(parquet=False)._asdict(),
            "portions": len(self.portions),
        }
        with owned(self.place / OWNER, f"the prediction {self.out}"):
            kept = Portions(self.place / PORTIONS, about, len(self.portions))
            carry_out("predicted", spread, Prediction(self.read, self.options, kept), self.portions, kept)
            done = self._write(kept)
            kept.remove()
        return done

    def _write(self, kept: Portions) -> Predicted:
        images = detections = frames = partly = 0
        unreadable: list[str] = []
        for content in _contents(kept):
            images += len(content["images"])
            detections += len(content["found"])
            frames += sum("frame" in image for image in content["images"])
            partly += len(content["damaged"])
            unreadable += content["unreadable"]
        if not images:
            kept.remove()
            raise DataError(
                f"None of the {len(self.files.paths)} images can be read; nothing was written. The log says why."
            )
        results = Results(str(self.place), self.categories, self.options.parquet)
        results.write(lambda: _numbered(_contents(kept), self.files.ids is None))
        passed_over = [*self.files.passed_over]
        if partly:
            passed_over.append(damaged(partly))
        return Predicted(images, tuple(unreadable), detections, tuple(passed_over), frames)


def _require_own(place: Location, out: str) -> None:
    try:
        if place.is_file():
            raise DataError(f"{out} is a file; nothing was written. Give a directory.")
        others = place.children().keys() - claims(place / OWNER).keys() - {PORTIONS}
        begun = (place / PORTIONS / PLAN).is_file()
    except OSError as error:
        raise DataError(f"{out} cannot be used: {error}. Choose another place.") from error
    if others and not begun:
        raise DataError(f"{out} is not empty; nothing was written. Choose another place.")


def _contents(kept: Portions) -> Iterator[dict[str, Any]]:
    return (json.loads(data) for data in kept.read())


def _numbered(contents: Iterator[dict[str, Any]], count: bool) -> Iterator[Part]:
    """The parts, whose images are counted on from one to the next, if they are counted at all."""
    before = 0
    for content in contents:
        images, found = content["images"], content["found"]
        if count:
            for image in images:
                image["id"] += before
            for result in found:
                result["image_id"] += before
            before += len(images)
        yield Part(images, found)
