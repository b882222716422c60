"""The pictures that a split is judged by: its images, or the larger pictures of which they are the tiles."""

import numpy as np
import torch
from torch import Tensor

from mgdet.data.dataset import ShardedDataset
from mgdet.data.decode import decode_image
from mgdet.ground_truth import GroundTruth


class Pictures:
    """Annotations, names and pixels of those pictures, by row of `truth`.

    Raises `DataError` where the split is made of tiles whose whole pictures cannot be read.
    """

    def __init__(self, dataset: ShardedDataset) -> None:
        own = dataset.ground_truth()
        self.dataset, self._tiles = dataset, own.tiles
        self.truth: GroundTruth = own if own.tiles is None else own.tiles.whole

    @property
    def are_cut(self) -> bool:
        """Whether the images of the split are tiles."""
        return self._tiles is not None

    def __len__(self) -> int:
        return len(self.truth.image_ids)

    def file_name(self, row: int) -> str:
        """The source's name of the picture's file."""
        if self._tiles is None:
            return self.dataset.file_name(row)
        first = int(np.searchsorted(self._tiles.picture, row))
        x1, y1 = self._tiles.frames[first, :2].tolist()
        return self.dataset.file_name(first).removesuffix(f"@{x1},{y1}")

    def pixels(self, row: int) -> Tensor:
        """The picture, `[3, H, W]` uint8 RGB. Raises `DataError` where it, or one of its tiles, cannot be read."""
        if self._tiles is None:
            return self._decoded(row)
        whole = torch.zeros(3, int(self.truth.heights[row]), int(self.truth.widths[row]), dtype=torch.uint8)
        for tile in np.flatnonzero(self._tiles.picture == row).tolist():
            x1, y1, x2, y2 = self._tiles.frames[tile].tolist()
            whole[:, y1:y2, x1:x2] = self._decoded(tile)
        return whole

    def _decoded(self, row: int) -> Tensor:
        return decode_image(self.dataset.read_image(row), self.dataset.describe(row))
