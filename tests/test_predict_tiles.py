"""Prediction in tiles: every object is found once, where it lies in the whole picture."""

from types import SimpleNamespace

import pytest
import torch

from mgdet.errors import ConfigError
from mgdet.inference import predict
from mgdet.structures import Detections

TRAINED = SimpleNamespace(experiment=SimpleNamespace(model=SimpleNamespace(postprocess=SimpleNamespace(nms_iou=0.5))))
OBJECTS = [[30, 10, 70, 40], [105, 60, 140, 95], [0, 80, 20, 100]]
"""Whole pixels; each has a colour channel, and its number there."""


def picture():
    image = torch.zeros(3, 100, 150, dtype=torch.uint8)
    for channel, (x1, y1, x2, y2) in enumerate(OBJECTS):
        image[channel, y1:y2, x1:x2] = 200
    return image


def find_colours(trained, images):
    """A detector without a fault: the bounds of each colour, more confident where more of it is seen."""
    out = Detections(
        boxes=torch.zeros(len(images), 3, 4),
        scores=torch.zeros(len(images), 3),
        labels=torch.zeros(len(images), 3, dtype=torch.int64),
        valid=torch.zeros(len(images), 3, dtype=torch.bool),
        priors=torch.zeros(len(images), 3, dtype=torch.int64),
    )
    for i, image in enumerate(images):
        for channel in range(3):
            y, x = image[channel].nonzero(as_tuple=True)
            if len(x):
                out.boxes[i, channel] = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
                out.scores[i, channel] = len(x) / 10_000
                out.labels[i, channel] = channel
                out.valid[i, channel] = True
    return out


@pytest.mark.parametrize(("tile", "overlap"), [(90, 0.5), (200, 0.2), (64, 0.9)])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_objects_smaller_than_the_overlap_are_found_once(tile, overlap, batch_size):
    found = predict.detect_in_tiles(TRAINED, picture(), tile, overlap, batch_size, find_colours)
    assert found.valid.all()
    boxes = dict(zip(found.labels[0].tolist(), found.boxes[0].tolist(), strict=True))
    assert found.labels.shape == (1, 3)
    assert [boxes[channel] for channel in range(3)] == OBJECTS
    assert found.scores[0].tolist() == sorted(found.scores[0].tolist(), reverse=True)


def test_a_picture_without_detections():
    found = predict.detect_in_tiles(TRAINED, torch.zeros(3, 100, 150, dtype=torch.uint8), 64, 0.2, find=find_colours)
    assert found.boxes.shape == (1, 0, 4)


def test_impossible_tiles_are_refused():
    with pytest.raises(ConfigError, match="predict: tile = 5: allowed are 32 to 16384"):
        predict.check_tiling("predict", 5, 0.2)
