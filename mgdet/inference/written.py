"""What a prediction writes: COCO's results, what their image ids mean, a table, and pictures and videos with boxes."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from mgdet.errors import DataError
from mgdet.files import may_be_written
from mgdet.inference.output import JsonFile, OutputFile
from mgdet.inference.photos import Photo
from mgdet.inference.prediction import Prediction, predictions
from mgdet.inference.video import DrawnVideo
from mgdet.storage import child_uri
from mgdet.structures import Category, Detections


class Part(NamedTuple):
    """Some of the images of a prediction."""

    images: list[dict[str, Any]]
    """As `Photo.described` has them."""
    found: list[dict[str, Any]]
    """The results in them, in COCO's format."""


class Results:
    """`images.json`, `detections.json`, which is written last, and `detections.parquet` if a table is wanted.

    Args:
        directory: a local path or a `pyarrow.fs` URI.
        categories: the classes of the detector.
        parquet: whether a table is wanted.

    Raises:
        DataError: the directory cannot be written to.
    """

    def __init__(self, directory: str, categories: Sequence[Category], parquet: bool) -> None:
        self.categories = categories
        self.table = OutputFile(child_uri(directory, "detections.parquet")) if parquet else None
        self.images = JsonFile(child_uri(directory, "images.json"))
        self.detections = JsonFile(child_uri(directory, "detections.json"))

    def write(self, parts: Callable[[], Iterable[Part]]) -> None:
        """Write all files from the parts, which are asked for anew for each of them. Raises `DataError`."""
        categories = json.dumps([{"id": c.id, "name": c.name} for c in self.categories])
        images = (image for part in parts() for image in part.images)
        self.images.write_list(images, '{"images": ', f',\n"categories": {categories}}}')
        if self.table is not None:
            frames = any("frame" in image for part in parts() for image in part.images)
            with self.table.replacing() as stream:
                _write_parquet(stream, parts(), frames)
        self.detections.write_list(result for part in parts() for result in part.found)


def coco_results(photos: Sequence[Photo], found: Sequence[Prediction]) -> list[dict[str, Any]]:
    """The predictions of photos in COCO's results format, each with the name of its file."""
    return [
        {"image_id": photo.id, "file_name": photo.name, **result}
        for photo, prediction in zip(photos, found, strict=True)
        for result in prediction.to_coco(photo.id)
    ]


def described(
    photos: Sequence[Photo], found: Sequence[Prediction], pictures: "Pictures | None"
) -> list[dict[str, Any]]:
    """What `images.json` says of photos, whose pictures are drawn if they are wanted. Raises `DataError`."""
    images = [photo.described() for photo in photos]
    if pictures is not None:
        for image, photo, prediction in zip(images, photos, found, strict=True):
            image["picture"] = pictures.draw(photo, prediction)
    return images


def found_in(
    photos: Sequence[Photo], detections: Detections, categories: tuple[Category, ...], score: float
) -> list[Prediction]:
    """The `[B, D]` detections of `B` photos from a score on."""
    sizes = [(photo.pixels.shape[1], photo.pixels.shape[2]) for photo in photos]
    return predictions(detections, sizes, categories, score)


class Names:
    """Names for files of one directory, all different even where a file system ignores case."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self.taken = {name.casefold() for name in taken}

    def free(self, source: str, suffix: str) -> str:
        """A name like that of the source, with another suffix."""
        stem = PurePosixPath(source).stem
        name, number = f"{stem}{suffix}", 1
        while name.casefold() in self.taken:
            name, number = f"{stem}-{number}{suffix}", number + 1
        self.taken.add(name.casefold())
        return name


class Pictures:
    """Draws the detections into a picture of each image, and into a video for each video; one is open at a time.

    Args:
        directory: where they are written.
        names: those that are taken there.
    """

    def __init__(self, directory: Path, names: Names) -> None:
        self.directory, self.names = directory, names
        self.of: str | None = None
        self.video: DrawnVideo | None = None

    def draw(self, photo: Photo, found: Prediction) -> str:
        """Draw a photo; returns the name of the file. Raises `DataError`."""
        from mgdet.evaluation.draw import draw_boxes

        texts = [f"{name} {score:.2f}" for name, score in zip(found.names, found.scores.tolist(), strict=True)]
        picture = draw_boxes(photo.pixels, found.boxes.tolist(), found.labels.tolist(), texts)
        if photo.frame is None:
            source = photo.name
            if photo.row is not None:  # by its number: a table may call it what no file can be called
                source = f"{PurePosixPath(photo.row.table).stem}-{photo.row.number:06d}.png"
            path = self.directory / self.names.free(source, ".png")
            try:
                may_be_written(path)
                picture.save(path)
            except OSError as error:
                raise DataError(f"{path} cannot be written: {error}. Check the space and the rights.") from error
            return path.name
        if self.video is None or self.of != photo.frame.video:
            self.close()
            self.of = photo.frame.video
            path = self.directory / self.names.free(self.of, ".mp4")
            self.video = DrawnVideo(path, photo.frame.rate)
        self.video.add(picture)
        return self.video.path.name

    def close(self) -> None:
        """End the video that is being drawn. Raises `DataError`."""
        if self.video is not None:
            self.video.close()
        self.video = None

    def discard(self) -> None:
        """Remove what there is of a video that was not closed."""
        if self.video is not None:
            self.video.discard()
        self.video = None


def _write_parquet(stream: Any, parts: Iterable[Part], frames: bool) -> None:
    """A row for each of COCO's results, with corners in pixels, as an evaluation has them; frames with their time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    corners = ("x1", "y1", "x2", "y2")
    kinds = {"image_id": pa.int64(), "file_name": pa.string(), "category_id": pa.int64(), "category": pa.string()}
    kinds |= {"score": pa.float64(), **dict.fromkeys(corners, pa.float64())}
    of_frames = {"video": pa.string(), "frame": pa.int64(), "seconds": pa.float64()} if frames else {}
    schema = pa.schema({**kinds, **of_frames})
    with pq.ParquetWriter(stream, schema) as writer:
        for part in parts:
            boxes = np.array([r["bbox"] for r in part.found], dtype=np.float64).reshape(-1, 4)
            boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
            columns: dict[str, Any] = {name: boxes[:, k] for k, name in enumerate(corners)}
            for name in kinds.keys() - columns.keys():
                key = "category_name" if name == "category" else name
                columns[name] = [result[key] for result in part.found]
            if frames:
                by_id = {image["id"]: image for image in part.images}
                columns |= {name: [by_id[r["image_id"]].get(name) for r in part.found] for name in of_frames}
            writer.write_table(pa.table(columns, schema))
