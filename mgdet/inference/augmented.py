"""Test-time augmentation: an image is also detected in mirrored and in other sizes, and what is found is joined.

The union of all detections is suppressed once more within each class, as in Detectron's `bbox_aug` (Girshick et al.,
2018): of boxes that overlap by more than `model.postprocess.nms_iou` the best scored one stays.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from mgdet.data.transforms import FixedSize, LongestEdge, Resize
from mgdet.errors import DataError
from mgdet.inference.load import Trained
from mgdet.inference.predict import detect
from mgdet.structures import Detections

SCALES = (0.75, 1.25)
"""What the word `scales` stands for, beside the size of the checkpoint."""
_LEAST, _GREATEST = 0.1, 4.0


class View(NamedTuple):
    """One way of looking at an image."""

    flip: bool = False  # from left to right
    scale: float = 1.0  # of the network's input


def views(words: Sequence[str]) -> tuple[View, ...]:
    """The views that `flip`, `scales` and numbers ask for: every size plain and, with `flip`, mirrored as well.

    The first one is the image as it is. Raises `DataError` for any other word.
    """
    flips, scales = [False], [1.0]
    for word in words:
        if word == "flip":
            flips = [False, True]
        elif word == "scales":
            scales += SCALES
        else:
            scales.append(_scale(word))
    return tuple(View(flip, scale) for scale in dict.fromkeys(scales) for flip in flips)


def _scale(word: str) -> float:
    try:
        scale = float(word)
    except ValueError:
        scale = 0.0
    if not _LEAST <= scale <= _GREATEST:
        raise DataError(
            f"test-time augmentation {word!r}: allowed are flip, scales (which is {SCALES[0]:g},{SCALES[1]:g}), and "
            f"numbers from {_LEAST:g} to {_GREATEST:g} by which the size of the network's input is multiplied"
        )
    return scale


def detect_in_views(trained: Trained, images: Sequence[Tensor], looked: Sequence[View]) -> Detections:
    """As `detect`, joined over all views. `Detections.priors` are those of the view in which each was found."""
    found = [_of_view(trained, images, view) for view in looked]
    settings = trained.experiment.model.postprocess
    joined = Detections(*(torch.cat(columns, dim=1) for columns in zip(*map(_columns, found), strict=True)))
    kept = []
    for i in range(len(images)):
        index = joined.valid[i].nonzero().squeeze(1)
        one = joined[i]
        index = index[batched_nms(one.boxes[index], one.scores[index], one.labels[index], settings.nms_iou)]
        kept.append(index[: settings.max_detections])
    most = max(len(index) for index in kept)
    rows = [torch.cat([index, index.new_zeros(most - len(index))]) for index in kept]
    exists = torch.stack([torch.arange(most) < len(index) for index in kept])
    chosen = torch.arange(len(images))[:, None], torch.stack(rows)
    return joined.map(lambda column: column[chosen]).map(
        lambda column: torch.where(exists.view(exists.shape + (1,) * (column.dim() - 2)), column, 0)
    )


def _columns(detections: Detections) -> tuple[Tensor, ...]:
    return detections.boxes, detections.scores, detections.labels, detections.valid, detections.priors


def _of_view(trained: Trained, images: Sequence[Tensor], view: View) -> Detections:
    data = trained.experiment.data
    transform = data.transform.model_copy(update={"resize": _scaled(data.transform.resize, view.scale)})
    experiment = trained.experiment.model_copy(update={"data": data.model_copy(update={"transform": transform})})
    seen = [image.flip(-1) for image in images] if view.flip else images
    found = detect(trained._replace(experiment=experiment), seen)
    if not view.flip:
        return found
    width = torch.tensor([[float(image.shape[-1])] for image in images])
    x1, y1, x2, y2 = found.boxes.unbind(-1)
    boxes = torch.stack([width - x2, y1, width - x1, y2], dim=-1)
    return found.replace(boxes=torch.where(found.valid.unsqueeze(-1), boxes, 0.0))


def _scaled(resize: Resize, scale: float) -> Resize:
    def side(value: int) -> int:
        return max(1, round(value * scale))

    if isinstance(resize, FixedSize | LongestEdge):
        return resize.model_copy(update={"height": side(resize.height), "width": side(resize.width)})
    return resize.model_copy(update={"sizes": tuple(map(side, resize.sizes)), "longest": side(resize.longest)})
