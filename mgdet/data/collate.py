"""Batches of decoded and transformed images."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mgdet.data.augment import Picture
from mgdet.data.bad_images import BadImage
from mgdet.structures import Batch, pad_targets


class Sample(NamedTuple):
    """One decoded and transformed image, before it is put into a batch."""

    data: Picture
    original_size: tuple[int, int]  # (height, width) of the image file
    image_id: int
    position: int
    crowds: Tensor | None = None  # [r, 4] crowd boxes, in pixels of the network input; None: none


class Collate:
    """Makes a `Batch` of samples: pads images at the right and bottom to one size, a multiple of `divisor`."""

    def __init__(self, divisor: int) -> None:
        self.divisor = divisor

    def __call__(self, samples: list[Sample]) -> Batch:
        sizes = torch.tensor([s.data.image.shape[1:] for s in samples])
        height, width = (-(-int(n) // self.divisor) * self.divisor for n in sizes.amax(dim=0))
        images = torch.zeros(len(samples), 3, height, width, dtype=torch.uint8)
        for i, s in enumerate(samples):
            images[i, :, : s.data.image.shape[1], : s.data.image.shape[2]] = s.data.image
        return Batch(
            images=images,
            sizes=sizes,
            original_sizes=torch.tensor([s.original_size for s in samples]),
            targets=pad_targets([s.data.boxes for s in samples], [s.data.labels for s in samples]).replace(
                regions=_padded_regions(samples)
            ),
            image_ids=torch.tensor([s.image_id for s in samples]),
            positions=torch.tensor([s.position for s in samples]),
        )


class Loaded(NamedTuple):
    """What a loader makes of the rows of a batch."""

    batch: Batch
    bad: list[BadImage]


class CollateReadable(Collate):
    """As `Collate`, of the images that can be read; the others are told.

    At least two images, or as many as there are rows, are in the batch, because BatchNorm may not learn from one: the
    rest is empty pictures that are crowds all over, and so take no part in the losses.
    """

    def __call__(self, samples: list[Sample | BadImage]) -> Loaded:  # type: ignore[override]  # not a batch alone
        bad = [s for s in samples if isinstance(s, BadImage)]
        good = [s for s in samples if isinstance(s, Sample)]
        missing = max(0, min(2, len(samples)) - len(good))
        return Loaded(super().__call__(good + [_empty(one) for one in bad[:missing]]), bad)


def _empty(bad: BadImage) -> Sample:
    height, width = bad.size
    nothing = Picture(
        torch.zeros(3, height, width, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    )
    everywhere = torch.tensor([[0.0, 0.0, width, height]])
    return Sample(nothing, bad.size, bad.image_id, bad.position, everywhere)


def _padded_regions(samples: Sequence[Sample]) -> Tensor:
    """The crowds of a batch `[B, R, 4]`, padded with zeros to the image that has most."""
    crowds = [torch.zeros(0, 4) if s.crowds is None else s.crowds for s in samples]
    return pad_targets(crowds, [torch.zeros(len(c), dtype=torch.int64) for c in crowds]).boxes
