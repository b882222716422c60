"""An import in portions, which processes share: what `import_annotations` writes, byte for byte.

Processes decode portions of the images, and then write shards. In between this process makes all rows but their
pictures, which takes a small part of the time and depends on the order. All that is done lies in a directory beside the
destination, `.<name>.prepare`, until the data set is complete:

    checked/    what decoding showed of each portion of images
    rows/       the rows of each shard, without pictures
    written/    what the manifest says of each shard that is written
    data/       the shards; in an object store, which renames nothing, they lie at the destination at once

Each result carries a key of what it was made from. What has another key when the work goes on is made anew, so that
nothing is stale, whatever was changed in between.
"""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgdet import __version__
from mgdet.data.choices import Choices
from mgdet.data.depth import Depth
from mgdet.data.files import Found
from mgdet.data.formats.base import DataFormat
from mgdet.data.importer import Import
from mgdet.data.rows import Row, pictured, read_rows, write_rows
from mgdet.data.schema import ROWS_PER_SHARD, Manifest, ShardInfo, SplitInfo, manifest_exists, shard_file
from mgdet.data.verify import Listed, Source, Unusable, Usable, decoded
from mgdet.data.writer import WrittenShard, check_names, own_destination, split_info, write_manifest, write_shard
from mgdet.errors import DataError
from mgdet.portions import PLAN, Done, Portion, Portions, Spread, Work, carry_out, not_seen
from mgdet.storage import Location, as_file, locate, may_take, take_place

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

SIZE = 256
"""Images that are decoded in a portion."""
CHECKED, ROWS, WRITTEN, DATA = "checked", "rows", "written", "data"


class Checking(Work):
    """Decodes the images of a portion.

    Args:
        max_pixels: of an image, at most.
        kept: where the results are kept.
    """

    def __init__(self, max_pixels: int, kept: Portions) -> None:
        self.max_pixels, self.kept = max_pixels, kept

    def begin(self, device: "torch.device") -> None:
        """Nothing is needed."""

    def __call__(self, portion: Portion) -> Done:
        """Decode the images, and keep what that shows. Raises `DataError` for one that this machine does not see."""
        directory, names, key = portion.content
        place = as_file(directory)
        answers = []
        for name in names:
            file = decoded(place, name, self.max_pixels)
            if isinstance(file, Unusable) and file.missing:
                raise not_seen(place / name)
            answers.append(file.reason if isinstance(file, Unusable) else [*file[1:-1]])
        self.kept.write(portion.number, json.dumps({"key": key, "answers": answers}).encode())
        return Done(portion.images)


def _file(name: str, answer: Any) -> Usable | Unusable:
    """What `Checking` said of a file."""
    if isinstance(answer, str):
        return Unusable(name, False, answer)
    (height, width), (stored_height, stored_width), orientation, depth = answer
    known = None if depth is None else Depth(*depth)
    return Usable(name, (height, width), (stored_height, stored_width), orientation, known)


class Writing(Work):
    """Writes a shard.

    Args:
        root: of the data set.
        rows: the directory of the rows.
        max_pixels: of an image that is cut into tiles, at most.
        kept: where the results are kept.
    """

    def __init__(self, root: Location, rows: Location, max_pixels: int, kept: Portions) -> None:
        self.root, self.rows, self.max_pixels, self.kept = root, rows, max_pixels, kept

    def begin(self, device: "torch.device") -> None:
        """Nothing is needed."""

    def __call__(self, portion: Portion) -> Done:
        """Read the images of a shard and write it. Raises `DataError` where that cannot be done."""
        name, checksum, directory, key = portion.content
        rows = read_rows(self.rows / _rows_file(portion.number), checksum)
        records = pictured(rows, as_file(directory), self.max_pixels)
        file = self.root / name
        # Another process may still be at work on it that counts as lost
        part = file.with_name(f"{file.name}.{uuid.uuid4().hex}") if file.is_local else file
        try:
            written = write_shard(part, name, records)
            if part is not file:
                file.filesystem.move(part.path, file.path)
        except OSError as error:
            raise DataError(
                f"{file} cannot be written: {error}. Check the space, the rights and the store; the same command "
                "goes on."
            ) from error
        known = {"key": key, "info": written.info.model_dump(mode="json"), "counts": written.counts}
        self.kept.write(portion.number, json.dumps(known).encode())
        return Done(portion.images)


def _still_holds(portion: Portion, known: dict[str, Any]) -> bool:
    """Whether a result of `Checking` need not be made anew.

    What made a file unusable, such as its rights, may have changed without a trace.
    """
    return bool(known["key"] == portion.content[-1]) and not any(isinstance(each, str) for each in known["answers"])


def _rows_file(number: int) -> str:
    return f"{number:06d}.parquet"


class ImportPlan:
    """An import in portions; see `run`.

    Args:
        uri: destination, beside which there must be room for another directory.
        data_format, splits, name, overwrite, choices: as for `import_annotations`; whoever does a portion must see the
            images too.

    Raises:
        DataError: as for `import_annotations`, before anything is decoded.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        data_format: DataFormat,
        splits: Sequence[tuple[str, Sequence[str | os.PathLike[str]]]],
        *,
        name: str | None = None,
        overwrite: bool = False,
        **choices: Any,
    ) -> None:
        self.uri, self.target, self.overwrite = uri, locate(uri), overwrite
        if "/" not in self.target.path.strip("/"):
            raise DataError(f"{uri}: nothing can lie beside it while it is written. Give a directory below it.")
        self.name = name or self.target.name
        self.stage = self.target.with_name(f".{self.target.name}.prepare")
        self._may_take()
        self._import = Import(data_format, splits, Choices(**choices))
        self.listed, self.choices = self._import.listed, self._import.choices
        check_names(uri, [listed.split for listed in self.listed], self._import.categories)

    def run(self, spread: Spread) -> Manifest:
        """Convert, and write the data set, once. After a stop a new plan of the same arguments goes on.

        No byte depends on `spread`.

        Raises:
            DataError: as for `import_annotations`, or the directory beside the destination cannot be used.
            Interrupted: it was asked to stop, and keeps what is done.
            OwnedError: another process writes there.
        """
        with own_destination(self.uri):
            try:
                manifest = self._write(spread, self._import.rows(self._check(spread)))
                self.stage.remove()
            except OSError as error:
                raise DataError(
                    f"{self.stage} cannot be used: {error}. Check the space, the rights and the store; the same "
                    "command goes on."
                ) from error
        self._import.report(self.uri)
        return manifest

    def _may_take(self) -> bool:
        """Whether a data set is to be replaced at the destination. Raises `DataError` for what may not be replaced."""
        try:
            if not self.target.is_local and self._is_begun() and not manifest_exists(self.target):
                return False  # shards of an earlier call
        except OSError as error:
            raise DataError(
                f"{self.uri} cannot be used: {error}. Check the address, the rights and the store."
            ) from error
        return may_take(self.uri, overwrite=self.overwrite, is_ours=manifest_exists)

    def _is_begun(self) -> bool:
        """Whether an earlier call has begun to write shards."""
        return (self.stage / WRITTEN / PLAN).is_file()

    def _check(self, spread: Spread) -> list[Source]:
        portions: list[Portion] = []
        for listed in self.listed:
            names = (place.name for place in listed.places if isinstance(place, Found))
            while some := list(islice(names, SIZE)):
                key = _key([self.choices.max_pixels, *_versions(listed, some)])
                portions.append(Portion(len(portions), len(some), (_address(listed), some, key)))
        kept = Portions(self.stage / CHECKED, {"work": CHECKED}, len(portions))
        _forget(kept, portions, _still_holds)
        carry_out(CHECKED, spread, Checking(self.choices.max_pixels, kept), portions, kept)
        answers = (answer for data in kept.read() for answer in json.loads(data)["answers"])
        sources = []
        for split, content, images, places, _ in self.listed:
            files = [place if isinstance(place, Unusable) else _file(place.name, next(answers)) for place in places]
            sources.append(Source(split, content, images, files))
        return sources

    def _write(self, spread: Spread, rows: Sequence[Iterator[Row]]) -> Manifest:
        occupied = self._may_take()
        logger.info("arranging the annotations of %s", ", ".join(listed.split for listed in self.listed))
        root = self.stage / DATA if self.target.is_local else self.target
        portions = self._stage_rows(rows)
        if occupied and not self.target.is_local and not self._is_begun():
            self.target.clear()
        kept = Portions(self.stage / WRITTEN, {"work": WRITTEN}, len(portions))
        for listed in self.listed:
            (root / listed.split).mkdir()
        sizes = {
            f"{each.split}/{n}": size for each in self.listed for n, size in (root / each.split).children().items()
        }

        def is_there(portion: Portion, known: dict[str, Any]) -> bool:
            file, *_, key = portion.content
            return bool(known["key"] == key and sizes.get(file) == known["info"]["size"])

        _forget(kept, portions, is_there)
        carry_out(WRITTEN, spread, Writing(root, self.stage / ROWS, self.choices.max_pixels, kept), portions, kept)
        splits = self._splits(kept)
        _remove_parts(root, splits)
        manifest = write_manifest(root, splits, name=self.name, **self._import.described())
        if self.target.is_local:
            take_place(Path(root.path), Path(self.target.path), occupied)
        return manifest

    def _stage_rows(self, rows: Sequence[Iterator[Row]]) -> list[Portion]:
        """Write the rows of each shard to a file: they are the same each time."""
        (self.stage / ROWS).mkdir()
        portions: list[Portion] = []
        for listed, of_split in zip(self.listed, rows, strict=True):
            shards = 0
            while some := list(islice(of_split, ROWS_PER_SHARD)):
                number = len(portions)
                checksum = write_rows(self.stage / ROWS / _rows_file(number), some)
                key = _key([checksum, self.choices.max_pixels, *_versions(listed, [row.name for row in some])])
                content = (shard_file(listed.split, shards), checksum, _address(listed), key)
                portions.append(Portion(number, len(some), content))
                shards += 1
            if not shards:
                split_info(listed.split, [])  # refuses it
        return portions

    def _splits(self, kept: Portions) -> dict[str, SplitInfo]:
        shards: dict[str, list[WrittenShard]] = {listed.split: [] for listed in self.listed}
        for known in map(json.loads, kept.read()):
            info = ShardInfo.model_validate(known["info"])
            shards[info.file.partition("/")[0]].append(WrittenShard(info, known["counts"]))
        return {split: split_info(split, of_split) for split, of_split in shards.items()}


def _forget(kept: Portions, portions: Sequence[Portion], is_good: Callable[[Portion, dict[str, Any]], bool]) -> None:
    """Take portions for not done whose result is not good, or not good any more."""
    missing = set(kept.missing())
    done = [portion for portion in portions if portion.number not in missing]
    for portion, data in zip(done, kept.read([portion.number for portion in done]), strict=True):
        if not is_good(portion, json.loads(data)):
            kept.forget(portion.number)


def _remove_parts(root: Location, splits: dict[str, SplitInfo]) -> None:
    """Remove what processes left that ended in the middle of a shard."""
    for split, info in splits.items():
        for name in (root / split).children().keys() - {shard.file.partition("/")[2] for shard in info.shards}:
            (root / split / name).delete()


def _versions(listed: Listed, names: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of the last change of image files. Raises `DataError` for one that has gone."""
    for name in names:
        try:
            yield name, *listed.files.version(name)
        except OSError as error:
            raise DataError(f"{listed.files.directory / name} was there a moment ago: {error}. Start again.") from error


def _key(values: Sequence[object]) -> str:
    """A checksum of values, and of the version of this package."""
    return hashlib.sha256(json.dumps([__version__, *values]).encode()).hexdigest()


def _address(listed: Listed) -> str:
    """The image directory, as any process finds it."""
    directory = listed.files.directory
    return str(directory if isinstance(directory, Location) else directory.absolute())
