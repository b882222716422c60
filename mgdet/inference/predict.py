"""Detect objects in image files, exactly as an evaluation does, and write them in COCO's results format."""

import io
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mgdet.data.choices import check_tiling
from mgdet.data.collate import Collate, Sample
from mgdet.data.decode import decode_image
from mgdet.data.transforms import EvalTransform
from mgdet.errors import DataError
from mgdet.files import may_be_written, read_regular
from mgdet.inference.find import Images, find_images
from mgdet.inference.load import Trained
from mgdet.inference.output import JsonFile, OutputFile, empty_directory
from mgdet.inference.prediction import Prediction, predictions
from mgdet.structures import Detections
from mgdet.tiles import OVERLAP, grid, keep_of_tiles
from mgdet.training.precision import autocast
from mgdet.training.progress import ProgressLog

logger = logging.getLogger(__name__)

Find = Callable[[Trained, Sequence[Tensor]], Detections]
"""Detections in images `[3, H, W]`, uint8 RGB, in pixels of each."""


class Photo(NamedTuple):
    """An image file that could be read."""

    id: int
    path: Path
    pixels: Tensor  # [3, H, W] uint8 RGB, upright


class Predicted(NamedTuple):
    """How much a prediction wrote."""

    images: int  # number of images
    unreadable: tuple[str, ...]  # paths of the images that could not be read
    detections: int  # number of detections in all images
    passed_over: tuple[str, ...] = ()  # one text for each kind of file that was not taken: how many, and which


@torch.no_grad()
def detect(trained: Trained, images: Sequence[Tensor]) -> Detections:
    """Detections in `[3, H, W]` uint8 RGB images of any sizes, each in pixels of its own image.

    Resized, padded, normalised and suppressed as in evaluation. With a `resize` that keeps the aspect ratio images are
    padded to the largest of the call, so that scores may depend a little on the other images.
    """
    e, transform = trained.experiment, EvalTransform(trained.experiment.data.transform)
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    samples = [
        Sample(transform(image, *nothing), (image.shape[1], image.shape[2]), i, i) for i, image in enumerate(images)
    ]
    batch = Collate(e.data.loader.divisor)(samples).to(trained.device)
    with autocast(trained.device, e.train.precision):
        predictions = trained.detector(batch.images, batch.sizes)
    detections, _ = trained.detector.detect(predictions, batch.sizes, batch.original_sizes)
    return detections.cpu()


@torch.no_grad()
def detect_in_tiles(
    trained: Trained, image: Tensor, tile: int, overlap: float, batch_size: int = 1, find: Find = detect
) -> Detections:
    """Detections in a `[3, H, W]` uint8 RGB image that is cut into tiles, in pixels of the image; a batch of one.

    Each tile has at most `model.postprocess.max_detections`, the image as many as are left after one suppression.
    `find` detects in `batch_size` tiles at a time.
    """
    frames = grid(image.shape[1], image.shape[2], tile, overlap)
    parts: list[Detections] = []
    index: list[Tensor] = []
    for first in range(0, len(frames), batch_size):
        group = frames[first : first + batch_size]
        found = find(trained, [image[:, y1:y2, x1:x2] for x1, y1, x2, y2 in group])
        for i, (x1, y1, _, _) in enumerate(group):
            own = found[i].map(partial(_chosen, found.valid[i]))
            parts.append(own.replace(boxes=own.boxes + own.boxes.new_tensor([x1, y1, x1, y1])))
            index.append(torch.full((len(own.scores),), first + i))
    fields = [part.fields() for part in parts]
    every = Detections(**{name: torch.cat([field[name] for field in fields]) for name in fields[0]})
    corners, nms_iou = torch.tensor(frames, dtype=torch.float32), trained.experiment.model.postprocess.nms_iou
    kept = keep_of_tiles(every.boxes, every.scores, every.labels, torch.cat(index), corners, nms_iou)
    return every[kept].map(lambda t: t[None])


def _chosen(mask: Tensor, values: Tensor) -> Tensor:
    return values[mask]


def predict(
    trained: Trained,
    inputs: Sequence[str],
    out: str,
    *,
    score: float = 0.3,
    draw: bool = False,
    batch_size: int = 1,
    overwrite: bool = False,
    ids: str | None = None,
    max_pixels: int | None = None,
    tile: int = 0,
    overlap: float = OVERLAP,
    parquet: bool = False,
    views: Sequence[str] = (),
) -> Predicted:
    """Detect in files and write `out/detections.json` (COCO results) and `out/images.json` (what their ids mean).

    Args:
        trained: from `load_detector`.
        inputs: image files, and directories that are searched for images with all below them.
        out: a local directory, which must be empty or absent.
        score: detections below it are not written; those up to `model.postprocess.score_threshold` do not exist.
        draw: also write a picture of each image with its detections, `out/<name>.png`.
        batch_size: images at a time.
        overwrite: let `out` hold files already. Those of the same names are replaced, all others stay.
        ids: an annotation file in COCO's format. Its images alone are taken, matched by file name, and the results
            carry its ids, so that `loadRes` of pycocotools reads them for that file. By default ids are positions.
        max_pixels: width times height of an image, at most; by default that of the training.
        tile: cut larger images into tiles of so many pixels in height and width; 0: each is detected in as a whole.
        overlap: share of a tile that it has in common with its neighbour, at least.
        parquet: also write `out/detections.parquet`, a row for each detection.
        views: test-time augmentation: `flip`, `scales` and factors of the size, see `mgdet.inference.augmented`.

    Raises:
        DataError: an input that does not exist, no image that can be read, or an `out` that is taken or unwritable.
    """
    _check_options(trained, score, batch_size)
    check_tiling("predict", tile, overlap)
    find = _in_views(views) if views else detect
    directory = empty_directory(out, overwrite)
    found = find_images(inputs, directory, ids)
    paths, limit = found.paths, max_pixels or trained.experiment.data.loader.max_pixels
    made = not directory.exists()
    writer = _Writer(trained, directory, score, _picture_names(paths) if draw else None, parquet)
    unreadable: list[str] = []
    try:
        for photos in _groups(found, 1 if tile else batch_size, unreadable, limit):
            if tile:
                writer.add(photos, detect_in_tiles(trained, photos[0].pixels, tile, overlap, batch_size, find))
            else:
                writer.add(photos, find(trained, [p.pixels for p in photos]))
        if not writer.images:
            raise DataError(f"None of the {len(paths)} images can be read; nothing was written. The log says why.")
        writer.finish()
    except BaseException:
        if made:  # a directory without detections.json would only stand in the way of the next try
            shutil.rmtree(directory, ignore_errors=True)
        raise
    return Predicted(len(writer.images), tuple(unreadable), len(writer.results), found.passed_over)


def _in_views(words: Sequence[str]) -> Find:
    """`detect` with test-time augmentation. Raises `DataError`."""
    from mgdet.inference.augmented import detect_in_views, views

    return partial(detect_in_views, looked=views(words))


def _groups(found: Images, size: int, unreadable: list[str], max_pixels: int) -> Iterator[list[Photo]]:
    """The readable images, `size` at a time; the names of the others are appended to `unreadable`, with a warning."""
    paths = found.paths
    pace = ProgressLog("predicted", len(paths))
    group: list[Photo] = []
    for index, path in enumerate(paths):
        try:
            number = index - len(unreadable) if found.ids is None else found.ids[index]
            group.append(Photo(number, path, decode_image(read_regular(path), str(path), max_pixels)))
        except (OSError, DataError) as error:
            logger.warning("left out: %s", error)
            unreadable.append(path.as_posix())
        if group and (len(group) == size or index + 1 == len(paths)):
            yield group
            group = []
        pace.add(1)


def _check_options(trained: Trained, score: float, batch_size: int) -> None:
    if not 0 <= score <= 1:
        raise DataError(f"The least score to write is {score:g}; allowed are 0 to 1.")
    if batch_size < 1:
        raise DataError(f"The batch size is {batch_size}; it must be at least 1.")
    least = trained.experiment.model.postprocess.score_threshold
    if score < least:
        logger.warning("least score %g: the detector itself has none up to %g (model.postprocess)", score, least)


def _picture_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A file name for the picture of each image, all different even where a file system ignores case."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for index, path in enumerate(paths):
        name = path.stem
        while name.casefold() in taken:
            name = f"{name}-{index}"
        taken.add(name.casefold())
        names[path] = f"{name}.png"
    return names


def _parquet(results: Sequence[dict[str, Any]]) -> bytes:
    """A row for each of COCO's results, with corners in pixels, as an evaluation writes them."""
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
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


class _Writer:
    """Gathers the detections of all images and writes their pictures at once, the other files at the end."""

    def __init__(
        self, trained: Trained, directory: Path, score: float, pictures: dict[Path, str] | None, parquet: bool
    ) -> None:
        self.table = OutputFile(str(directory / "detections.parquet")) if parquet else None
        self.categories, self.directory, self.score, self.pictures = trained.categories, directory, score, pictures
        self.files = {name: JsonFile(str(directory / f"{name}.json")) for name in ("images", "detections")}
        self.images: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []

    def add(self, photos: Sequence[Photo], detections: Detections) -> None:
        """Gather the `[B, D]` detections of `B` images, and draw their pictures if they are wanted."""
        sizes = [(p.pixels.shape[1], p.pixels.shape[2]) for p in photos]
        found = predictions(detections, sizes, self.categories, self.score)
        for photo, prediction, (height, width) in zip(photos, found, sizes, strict=True):
            image: dict[str, Any] = {
                "id": photo.id,
                "file_name": photo.path.as_posix(),
                "width": width,
                "height": height,
            }
            if self.pictures is not None:
                image["picture"] = self.pictures[photo.path]
                self._draw(photo, prediction)
            self.images.append(image)
            for result in prediction.to_coco(photo.id):
                self.results.append({"image_id": photo.id, "file_name": image["file_name"], **result})

    def finish(self) -> None:
        """Write `images.json`, the table if it is wanted, then `detections.json`. Raises `DataError`."""
        categories = [{"id": c.id, "name": c.name} for c in self.categories]
        self.files["images"].write({"images": self.images, "categories": categories})
        if self.table is not None:
            self.table.write_bytes(_parquet(self.results))
        self.files["detections"].write(self.results)

    def _draw(self, photo: Photo, found: Prediction) -> None:
        from mgdet.evaluation.draw import draw_boxes

        texts = [f"{name} {score:.2f}" for name, score in zip(found.names, found.scores.tolist(), strict=True)]
        assert self.pictures is not None, "names were made where pictures are wanted"
        path = self.directory / self.pictures[photo.path]
        try:
            may_be_written(path)
            draw_boxes(photo.pixels, found.boxes.tolist(), found.labels.tolist(), texts).save(path)
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error}. Check the space and the rights.") from error
