"""What a prediction writes: COCO's results, what their image ids mean, a table, and pictures and videos with boxes."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mgdet.errors import DataError
from mgdet.files import may_be_written
from mgdet.inference.output import JsonFile, OutputFile
from mgdet.inference.photos import Photo
from mgdet.inference.prediction import Prediction, predictions
from mgdet.inference.video import DrawnVideo
from mgdet.structures import Category, Detections


class Results:
    """`images.json`, `detections.json`, which is written last, and `detections.parquet` if a table is wanted.

    Raises:
        DataError: the directory cannot be written to.
    """

    def __init__(self, directory: Path, categories: Sequence[Category], parquet: bool) -> None:
        self.categories = categories
        self.table = OutputFile(str(directory / "detections.parquet")) if parquet else None
        self.files = {name: JsonFile(str(directory / f"{name}.json")) for name in ("images", "detections")}
        self.images: list[dict[str, Any]] = []
        self.found: list[dict[str, Any]] = []

    def add(self, images: Iterable[dict[str, Any]], found: Iterable[dict[str, Any]]) -> None:
        """Gather images, as `Photo.described` has them, and the results in them."""
        self.images += images
        self.found += found

    def write(self) -> None:
        """Write all files. Raises `DataError`."""
        categories = [{"id": c.id, "name": c.name} for c in self.categories]
        self.files["images"].write({"images": self.images, "categories": categories})
        if self.table is not None:
            self.table.write_bytes(_parquet(self.images, self.found))
        self.files["detections"].write(self.found)


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
            path = self.directory / self.names.free(photo.name, ".png")
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


def _parquet(images: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]]) -> bytes:
    """A row for each of COCO's results, with corners in pixels, as an evaluation has them; frames with their time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    boxes = np.array([r["bbox"] for r in results], dtype=np.float64).reshape(-1, 4)
    boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    columns = {
        "image_id": pa.array([r["image_id"] for r in results], pa.int64()),
        "file_name": pa.array([r["file_name"] for r in results], pa.string()),
        "category_id": pa.array([r["category_id"] for r in results], pa.int64()),
        "category": pa.array([r["category_name"] for r in results], pa.string()),
        "score": pa.array([r["score"] for r in results], pa.float64()),
        **{name: pa.array(boxes[:, k]) for k, name in enumerate(("x1", "y1", "x2", "y2"))},
    }
    if any("frame" in image for image in images):
        by_id = {image["id"]: image for image in images}
        for name, kind in (("video", pa.string()), ("frame", pa.int64()), ("seconds", pa.float64())):
            columns[name] = pa.array([by_id[r["image_id"]].get(name) for r in results], kind)
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()
