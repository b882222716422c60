"""Detect objects in images and videos, exactly as an evaluation does, and write them in COCO's results format."""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mgdet.data.choices import check_tiling
from mgdet.data.collate import Collate, Sample
from mgdet.data.transforms import EvalTransform
from mgdet.errors import DataError
from mgdet.inference.find import Images, find_images
from mgdet.inference.load import Trained
from mgdet.inference.output import empty_directory
from mgdet.inference.photos import Photo, Reader, groups
from mgdet.inference.prediction import Prediction
from mgdet.inference.written import Names, Part, Pictures, Results, coco_results, described, found_in
from mgdet.structures import Detections
from mgdet.tiles import OVERLAP, grid, keep_of_tiles
from mgdet.training.precision import autocast
from mgdet.training.progress import ProgressLog

logger = logging.getLogger(__name__)

Find = Callable[[Trained, Sequence[Tensor]], Detections]
"""Detections in images `[3, H, W]`, uint8 RGB, in pixels of each."""


class Predicted(NamedTuple):
    """How much a prediction wrote."""

    images: int  # number of images, frames included
    unreadable: tuple[str, ...]  # names of the files that could not be read
    detections: int  # number of detections in all images
    passed_over: tuple[str, ...] = ()  # one text for each kind of file that was not taken: how many, and which
    frames: int = 0  # how many of the images are frames of videos


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


class Options(NamedTuple):
    """How a prediction detects, and what it writes."""

    score: float = 0.3
    """Detections below it are not written; those up to `model.postprocess.score_threshold` do not exist."""
    draw: bool = False
    """Also write a picture of each image with its detections, `<name>.png`, and a video of each video, `<name>.mp4`."""
    batch_size: int = 1
    """Images or frames at a time."""
    max_pixels: int | None = None
    """Width times height of an image or frame, at most; by default that of the training."""
    tile: int = 0
    """Cut larger images into tiles of so many pixels in height and width; 0: each is detected in as a whole."""
    overlap: float = OVERLAP
    """Share of a tile that it has in common with its neighbour, at least."""
    parquet: bool = False
    """Also write `detections.parquet`, a row for each detection."""
    views: Sequence[str] = ()
    """Test-time augmentation: `flip`, `scales` and factors of the size, see `mgdet.inference.augmented`."""
    every: int = 1
    """Take each so-manieth frame of a video."""


class Finder:
    """Detects in photos by the options of a prediction. Raises `DataError` for options that are not allowed."""

    def __init__(self, trained: Trained, options: Options) -> None:
        _check_options(trained, options)
        self.trained, self.options = trained, options
        self.find: Find = _in_views(options.views) if options.views else detect
        self.at_once = 1 if options.tile else options.batch_size
        """Photos at a time."""
        self.max_pixels = options.max_pixels or trained.experiment.data.loader.max_pixels

    def __call__(self, photos: Sequence[Photo]) -> list[Prediction]:
        """What is found in each of at most `at_once` photos."""
        o, images = self.options, [photo.pixels for photo in photos]
        if o.tile:
            found = detect_in_tiles(self.trained, images[0], o.tile, o.overlap, o.batch_size, self.find)
        else:
            found = self.find(self.trained, images)
        return found_in(photos, found, self.trained.categories, o.score)


def predict(
    trained: Trained,
    inputs: Sequence[str],
    out: str,
    *,
    overwrite: bool = False,
    ids: str | None = None,
    options: Options = Options(),  # noqa: B008  # it cannot be changed
) -> Predicted:
    """Detect in files and write `out/detections.json` (COCO results) and `out/images.json` (what their ids mean).

    Args:
        trained: from `load_detector`.
        inputs: image and video files, and directories that are searched with all below them; paths or URIs.
        out: a local directory, which must be empty or absent.
        overwrite: let `out` hold files already. Those of the same names are replaced, all others stay.
        ids: an annotation file in COCO's format. Its images alone are taken, matched by file name, and the results
            carry its ids, so that `loadRes` of pycocotools reads them for that file. By default ids are positions.
        options: how it detects, and what else it writes.

    Raises:
        DataError: an input that does not exist, no image that can be read, or an `out` that is taken or unwritable.
    """
    find = Finder(trained, options)
    directory = empty_directory(out, overwrite)
    files = find_images(inputs, directory, ids)
    made = not directory.exists()
    reader = Reader(find.max_pixels, options.every)
    results = Results(str(directory), trained.categories, options.parquet)
    every = Part([], [])
    pictures = Pictures(directory, Names()) if options.draw else None
    try:
        for photos in groups(_read_all(files, reader), find.at_once):
            found = find(photos)
            every.images.extend(described(photos, found, pictures))
            every.found.extend(coco_results(photos, found))
        if not every.images:
            raise DataError(
                f"None of the {len(files.paths)} images can be read; nothing was written. The log says why."
            )
        if pictures is not None:
            pictures.close()
        results.write(lambda: [every])
    except BaseException:
        if pictures is not None:
            pictures.discard()
        if made:  # a directory without detections.json would only stand in the way of the next try
            shutil.rmtree(directory, ignore_errors=True)
        raise
    passed_over = [*files.passed_over]
    if reader.damaged:
        passed_over.append(damaged(len(reader.damaged)))
    frames = sum("frame" in image for image in every.images)
    return Predicted(len(every.images), tuple(reader.unreadable), len(every.found), tuple(passed_over), frames)


def damaged(count: int) -> str:
    """What is said of damaged files of which a part was read."""
    return f"of damaged videos and tables (named above) what can be read is taken: {count}"


def _in_views(words: Sequence[str]) -> Find:
    """`detect` with test-time augmentation. Raises `DataError`."""
    from mgdet.inference.augmented import detect_in_views, views

    return partial(detect_in_views, looked=views(words))


def _read_all(files: Images, reader: Reader) -> Iterator[Photo]:
    """What can be read, with the ids of an annotation file where there is one."""
    pace = ProgressLog("predicted", len(files.paths))
    for index, file in enumerate(files.paths):
        yield from reader.read(file, None if files.ids is None else files.ids[index])
        pace.add(1)


def _check_options(trained: Trained, options: Options) -> None:
    if not 0 <= options.score <= 1:
        raise DataError(f"The least score to write is {options.score:g}; allowed are 0 to 1.")
    if options.batch_size < 1:
        raise DataError(f"The batch size is {options.batch_size}; it must be at least 1.")
    if options.every < 1:
        raise DataError(f"Each {options.every}th frame of a video cannot be taken; --every must be at least 1.")
    check_tiling("predict", options.tile, options.overlap)
    least = trained.experiment.model.postprocess.score_threshold
    if options.score < least:
        logger.warning(
            "least score %g: the detector itself has none up to %g (model.postprocess)", options.score, least
        )
