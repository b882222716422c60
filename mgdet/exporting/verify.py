"""Whether an exported file gives the detections of its checkpoint."""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mgdet.boxes import pairwise_iou
from mgdet.data.choices import MAX_PIXELS
from mgdet.data.collate import Collate, Sample
from mgdet.data.dataset import ShardedDataset
from mgdet.data.loader import EvalImages
from mgdet.data.transforms import EvalTransform
from mgdet.errors import ConfigError, DataError, MgdetError
from mgdet.exporting.describe import InputShape
from mgdet.exporting.formats import Call
from mgdet.inference.load import Trained
from mgdet.models.detector import Detector
from mgdet.models.postprocess import PostProcess
from mgdet.structures import Batch
from mgdet.text import first_line

logger = logging.getLogger(__name__)

IMAGES = 16
"""Images of the validation split, evenly spaced, or synthetic ones."""
BOX_TOLERANCE = 1e-3
"""Pixels that a coordinate may differ by."""
SCORE_TOLERANCE = 1e-5
IOU_TOLERANCE = 1e-4
"""How near to the threshold of suppression an IoU is taken to be on either side of it."""


class Rows(NamedTuple):
    """The `N` detections of one image, the best first."""

    boxes: Tensor  # [N, 4]
    scores: Tensor  # [N]
    labels: Tensor  # [N]


class Verification(NamedTuple):
    """What was compared, and how much it differed."""

    source: str
    """Where the images are from."""
    images: int
    """Number of images."""
    detections: int
    """Detections of the checkpoint in them."""
    undecided: int
    """Detections, of either side, that the other one lacks because a score or IoU lies on a threshold."""
    box_error: float
    """Greatest difference of a coordinate, pixels."""
    score_error: float
    """Greatest difference of a score."""

    def __str__(self) -> str:
        undecided = f", {self.undecided} undecided at a threshold" if self.undecided else ""
        return (
            f"{self.detections} detections in {self.images} images of {self.source}: boxes within "
            f"{self.box_error:.1e} px, scores within {self.score_error:.1e}{undecided}"
        )


class Compared(NamedTuple):
    """The detections of an image on both sides."""

    box_error: float
    score_error: float
    undecided: int
    different: tuple[str, ...]
    """A text for each detection that the other side lacks."""


@torch.no_grad()
def verify(call: Call, detector: Detector, trained: Trained, shape: InputShape, images: int = IMAGES) -> Verification:
    """Compare the graph of a file with the detector of the checkpoint, in float32 on the CPU.

    Images come from the split that the training evaluated on, or are synthetic where that cannot be read.

    Args:
        call: the graph of the file.
        detector: on the CPU, in evaluation mode.
        trained: what the checkpoint says.
        shape: of the images that the graph takes.
        images: how many at most.

    Raises:
        ConfigError: an image that does not fit into the size of `shape`.
        MgdetError: the detections differ, with numbers.
    """
    samples, source = verification_images(trained, images)
    settings, found = detector.config.postprocess, []
    number = 0
    for batch, wanted in _batches(samples, shape):
        inputs = (batch.images, batch.sizes, batch.original_sizes)
        detections, _ = detector.detect(detector(*inputs[:2]), *inputs[1:])
        try:
            boxes, scores, labels, counts = call(*inputs)
        except Exception as error:  # whatever another runtime raises
            height, width = batch.images.shape[2:]
            raise MgdetError(
                f"the exported graph does not run on {len(batch.images)} images of {height} x {width} pixels: "
                f"{first_line(error)}. Try a fixed --size and --batch."
            ) from error
        for i in range(wanted):
            valid, count = detections.valid[i], int(counts[i])
            ours = Rows(detections.boxes[i, valid], detections.scores[i, valid], detections.labels[i, valid])
            theirs = Rows(boxes[i, :count], scores[i, :count], labels[i, :count])
            found.append(compare(ours, theirs, settings))
            number += len(ours.scores)
    different = [text for one in found for text in one.different]
    if different:
        raise MgdetError(
            f"the exported graph does not give the checkpoint's detections: of {number} in {len(found)} images of "
            f"{source} {len(different)} differ by more than {BOX_TOLERANCE:g} px or {SCORE_TOLERANCE:g} of the score. "
            f"The first: {different[0]}"
        )
    if not number:
        logger.warning("the checkpoint detects nothing in the %d images of %s: little is verified", len(found), source)
    return Verification(
        source,
        len(found),
        number,
        sum(one.undecided for one in found),
        max((one.box_error for one in found), default=0.0),
        max((one.score_error for one in found), default=0.0),
    )


def compare(ours: Rows, theirs: Rows, settings: PostProcess) -> Compared:
    """Pair the detections of an image that are the same within the tolerances; the order counts only by score."""
    gap = (ours.boxes[:, None] - theirs.boxes[None]).abs().amax(dim=2)
    apart = (ours.scores[:, None] - theirs.scores[None]).abs()
    same = (gap <= BOX_TOLERANCE) & (apart <= SCORE_TOLERANCE) & (ours.labels[:, None] == theirs.labels[None])
    taken = torch.zeros(len(theirs.scores), dtype=torch.bool)
    lacking, box_error, score_error = [], 0.0, 0.0
    for i in range(len(ours.scores)):
        free = torch.where(same[i] & ~taken, gap[i], torch.inf)
        j = int(free.argmin()) if len(free) else -1
        if j < 0 or free[j] == torch.inf:
            lacking.append(i)
            continue
        taken[j] = True
        box_error, score_error = max(box_error, float(gap[i, j])), max(score_error, float(apart[i, j]))
    extra = (~taken).nonzero().flatten().tolist()
    unpaired = (_rows(ours, lacking), _rows(theirs, extra))
    undecided = _undecided((ours, theirs), unpaired, settings)
    different = [
        f"{name}: {_told(_rows(unpaired[side], [k]), (theirs, ours)[side])}"
        for side, name in enumerate(("missing", "not the checkpoint's"))
        for k, by_rounding in enumerate(undecided[side].tolist())
        if not by_rounding
    ]
    return Compared(box_error, score_error, int(sum(flags.sum() for flags in undecided)), tuple(different))


def _undecided(whole: tuple[Rows, Rows], unpaired: tuple[Rows, Rows], settings: PostProcess) -> tuple[Tensor, Tensor]:
    """Which of the unpaired detections of both sides exist, or do not exist, by rounding.

    Rounding decides about a score at the threshold or at the last place, about an IoU at the threshold of suppression,
    and about the order of two boxes that score alike. What such a box suppresses, or no longer does, depends on it.
    """
    flags = []
    for side in (0, 1):
        own, rows, others, rivals = whole[side], unpaired[side], whole[1 - side], unpaired[1 - side]
        least = float(own.scores[-1]) if len(own.scores) == settings.max_detections else 0.0
        found = rows.scores <= max(settings.score_threshold, least) + SCORE_TOLERANCE
        for all_of_side in (own, others):
            found |= ((_iou(rows, all_of_side) - settings.nms_iou).abs() <= IOU_TOLERANCE).any(dim=1)
        alike = (rows.scores[:, None] - rivals.scores[None]).abs() <= 2 * SCORE_TOLERANCE
        flags.append(found | (alike & (_iou(rows, rivals) > settings.nms_iou)).any(dim=1))
    suppressing = _iou(*unpaired) > settings.nms_iou
    while True:
        more = (
            flags[0] | (suppressing & flags[1][None]).any(dim=1),
            flags[1] | (suppressing & flags[0][:, None]).any(dim=0),
        )
        if all(torch.equal(new, old) for new, old in zip(more, flags, strict=True)):
            return more
        flags = list(more)


def _iou(a: Rows, b: Rows) -> Tensor:
    """IoU of detections of the same class, `[len(a), len(b)]`; 0 for others."""
    return pairwise_iou(a.boxes, b.boxes) * (a.labels[:, None] == b.labels[None])


def _rows(rows: Rows, index: Sequence[int]) -> Rows:
    return Rows(*(column[list(index)] for column in rows))


def _told(one: Rows, others: Rows) -> str:
    box = ", ".join(f"{value:.2f}" for value in one.boxes[0].tolist())
    text = f"label {int(one.labels)} with score {float(one.scores):.6f} at ({box})"
    if not len(others.scores):
        return f"{text}, where the other side detects nothing"
    gap = (others.boxes - one.boxes).abs().amax(dim=1)
    gap = gap + torch.where(others.labels == one.labels, 0.0, 1e9)
    j = int(gap.argmin())
    if gap[j] >= 1e9:
        return f"{text}, where the other side has no detection of this class"
    return f"{text}; the nearest differs by {float(gap[j]):.2g} px and {abs(float(others.scores[j] - one.scores)):.2g}"


def verification_images(trained: Trained, images: int) -> tuple[list[Sample], str]:
    """Images of the validation split, evenly spaced, or synthetic ones where it cannot be read; and where from."""
    data = trained.experiment.data
    try:
        split = ShardedDataset(data.uri, data.val_split)
        rows = np.unique(np.linspace(0, len(split) - 1, min(images, len(split))).round().astype(int)).tolist()
        source = EvalImages(split, data.transform, data.loader.max_pixels or MAX_PIXELS)
        return [source[row] for row in rows], f"{data.val_split} of {data.uri}"
    except (DataError, OSError) as error:
        logger.warning("the training's images cannot be read (%s): synthetic ones are taken", first_line(error))
        return synthetic(trained, images), "noise"


def synthetic(trained: Trained, images: int) -> list[Sample]:
    """Coarse and fine noise in several aspect ratios, always the same."""
    generator = torch.Generator().manual_seed(0)
    transform, nothing = EvalTransform(trained.experiment.data.transform), (torch.zeros(0, 4), torch.zeros(0).long())
    out = []
    for i in range(images):
        height, width = ((240, 320), (320, 240), (256, 256))[i % 3]
        coarse = torch.randint(0, 256, (3, 9, 12), generator=generator).float()[None]
        fine = torch.randint(-30, 31, (3, height, width), generator=generator)
        image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0] + fine
        out.append(Sample(transform(image.clamp(0, 255).byte(), *nothing), (height, width), i, i))
    return out


def _batches(samples: Sequence[Sample], shape: InputShape) -> Iterator[tuple[Batch, int]]:
    """The samples as the graph takes them, each batch with the number of images in it that were not added to fill it.

    Where any number of images may be taken, it is two and one in turn.
    """
    start, collate = 0, Collate(shape.divisor)
    while start < len(samples):
        size = shape.batch or (2 if start % 3 == 0 else 1)
        some = list(samples[start : start + size])
        filled = some + some[-1:] * (size - len(some)) if shape.batch else some
        batch = collate(filled)
        if shape.size is not None:
            below, right = (shape.size[i] - batch.images.shape[2 + i] for i in range(2))
            if below < 0 or right < 0:
                sides = " x ".join(str(int(n)) for n in batch.sizes.amax(dim=0))
                raise ConfigError(
                    f"size = {shape.size[0]} x {shape.size[1]}: an image becomes {sides} pixels. Give a larger size, "
                    "or --dynamic"
                )
            batch = batch.replace(images=pad(batch.images, (0, right, 0, below)))
        yield batch, len(some)
        start += len(some)
