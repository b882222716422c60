"""Write a prepared data set as annotations and images of a format that other tools read."""

import io
import logging
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from mgdet.data.dataset import ShardedDataset
from mgdet.data.files import image_suffixes
from mgdet.data.formats.base import AnnotatedImage, AnnotatedObject, AnnotatedSplit, WrittenFormat
from mgdet.data.schema import Progress, read_manifest
from mgdet.errors import DataError
from mgdet.ground_truth import GroundTruth
from mgdet.structures import unique_names
from mgdet.text import first_of

logger = logging.getLogger(__name__)

_UNFIT = re.compile(r"[\x00-\x1f\x7f/\\\\:*?\"<>|]")
"""Characters that a file name may not have, on this system or on others."""
_ORIENTATION = 0x0112


def export_dataset(
    uri: str | os.PathLike[str],
    data_format: WrittenFormat,
    out: str | os.PathLike[str],
    *,
    splits: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, tuple[Path, ...]]:
    """Write annotations and images to a new directory; `prepare` reads them back with the same boxes.

    Image files are those that were prepared, byte for byte. They keep the last part of their name; where two have the
    same without suffix, or a name is none for a file, `<split>-<id>-` stands before it.

    Args:
        uri: the prepared data set.
        data_format: how to write.
        out: the directory, which must not be there, or be empty.
        splits: by default all.
        progress: called now and then with what is being done, how many images are done, and of how many.

    Returns:
        For each split the paths that `prepare` takes.

    Raises:
        DataError: the data set cannot be read, a split is unknown, or `out` is taken.
    """
    target = Path(out)
    manifest = read_manifest(os.fspath(uri))
    chosen = list(dict.fromkeys(splits)) or list(manifest.splits)
    if unknown := [split for split in chosen if split not in manifest.splits]:
        raise DataError(f"{os.fspath(uri)} has no split {unknown[0]!r}: it has {first_of(list(manifest.splits))}.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target} exists already and nothing was written. Choose another place.")
    data = {split: ShardedDataset(os.fspath(uri), split) for split in chosen}
    names = _file_names(data)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise _not_written(target, error) from error
    try:
        for split in chosen:
            _write_split(data[split], split, data_format, data_format.layout(made, split), names[split], progress)
        made.chmod(0o777 & ~_umask())
        made.rename(target)
    except OSError as error:
        raise _not_written(target, error) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return {split: data_format.layout(target, split) for split in chosen}


def _not_written(target: Path, error: OSError) -> DataError:
    return DataError(f"Cannot write {target}: {error}. Make room, or choose another place.")


def _write_split(
    data: ShardedDataset,
    split: str,
    data_format: WrittenFormat,
    places: Sequence[Path],
    names: Sequence[str],
    progress: Progress | None,
) -> None:
    images = places[-1]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
    images.mkdir(exist_ok=True)
    turned: list[str] = []
    for row, name in enumerate(names):
        content = data.read_image(row)
        (images / name).write_bytes(content)
        if _orientation(content) != 1:
            turned.append(name)
        if progress is not None and (row + 1) % 100 == 0:
            progress(f"writing {split}", row + 1, len(names))
    data_format.write(annotated_split(data.ground_truth(), data_format, names, places), places)
    if progress is not None:
        progress(f"writing {split}", len(names), len(names))
    if turned:
        logger.warning(
            "%s: %d images have an EXIF orientation. Their boxes refer to the upright picture: %s",
            split,
            len(turned),
            first_of(turned),
        )


def annotated_split(
    truth: GroundTruth, data_format: WrittenFormat, names: Sequence[str], places: Sequence[Path] = (Path(), Path())
) -> AnnotatedSplit:
    """What a format would say of the annotations of a split, whose images have the file names `names`."""
    categories = dict(zip((c.id for c in truth.categories), unique_names(truth.categories), strict=True))
    return AnnotatedSplit(places[0], places[-1], list(_images(truth, data_format, names)), categories)


def _images(truth: GroundTruth, data_format: WrittenFormat, names: Sequence[str]) -> Iterator[AnnotatedImage]:
    objects: list[list[AnnotatedObject]] = [[] for _ in names]
    classes = unique_names(truth.categories)
    for row, label, box, crowd, area in zip(
        truth.box_image.tolist(),
        truth.labels.tolist(),
        truth.boxes.tolist(),
        truth.iscrowd.tolist(),
        truth.area.tolist(),
        strict=True,
    ):
        size = int(truth.heights[row]), int(truth.widths[row])
        numbers = data_format.annotated((box[0], box[1], box[2], box[3]), size)
        objects[row].append(AnnotatedObject(classes[label], numbers, iscrowd=bool(crowd), area=area))
    for row, name in enumerate(names):
        size = int(truth.heights[row]), int(truth.widths[row])
        yield AnnotatedImage(int(truth.image_ids[row]), name, size, objects[row])


def _file_names(data: Mapping[str, ShardedDataset]) -> dict[str, list[str]]:
    """The file name of each image, by split: no two are the same without suffix and case, over all splits."""
    plain = {split: [_plain(rows, row) for row in range(len(rows))] for split, rows in data.items()}
    counts = Counter(_key(name) for names in plain.values() for name in names)
    found = {
        split: [
            name if counts[_key(name)] == 1 else f"{split}-{number}-{name}"
            for name, number in zip(names, data[split].ground_truth().image_ids.tolist(), strict=True)
        ]
        for split, names in plain.items()
    }
    again = Counter(_key(name) for names in found.values() for name in names)
    if twice := [key for key, count in again.items() if count > 1]:
        raise DataError(f"Two images would have the file name {twice[0]!r}. Rename the files that were prepared.")
    return found


def _key(name: str) -> str:
    return PurePosixPath(name).stem.casefold()


def _plain(data: ShardedDataset, row: int) -> str:
    """The last part of an image's file name, as a name that any system takes, with the suffix of an image."""
    name = _UNFIT.sub("_", data.file_name(row).replace("\\", "/").rstrip("/").rpartition("/")[2]).strip(" .")
    if PurePosixPath(name).suffix.lower() in image_suffixes():
        return name
    from PIL import Image

    with Image.open(io.BytesIO(data.read_image(row))) as image:
        kind = (image.format or "jpeg").lower()
    return f"{name or 'image'}.{'jpg' if kind in ('jpeg', 'mpo') else kind}"


def _orientation(content: bytes) -> int:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return int(image.getexif().get(_ORIENTATION, 1) or 1)


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before
