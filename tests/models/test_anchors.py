"""Where priors lie and how large they are, by hand."""

import pytest
import torch
from pydantic import ValidationError
from torchvision.models.detection.anchor_utils import AnchorGenerator

from mgdet.models.anchors import AnchorConfig, grid_priors
from mgdet.models.fcos import FCOSConfig
from mgdet.structures import PriorLayout

GRIDS = [(16, 32), (8, 16), (4, 8), (2, 4), (1, 2)]


def priors(anchors: AnchorConfig):
    """Over an image of 128 x 256 pixels."""
    layout = PriorLayout(False, anchors.per_location)
    return grid_priors(anchors.generator(), (128, 256), GRIDS, torch.device("cpu"), layout, anchors.offset)


def test_the_default_is_torchvisions():
    sizes = tuple((int(s), int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in (32, 64, 128, 256, 512))
    theirs = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    strides = [[128 // h, 256 // w] for h, w in GRIDS]
    expected = torch.cat(theirs.grid_anchors([list(g) for g in GRIDS], strides))
    assert torch.equal(priors(AnchorConfig()).boxes, expected)


def test_exact_anchors_of_mutual_guidance():
    """Sides 24 and 24 * sqrt(2) in three shapes; rounded they are 46x24 and 34x16."""
    boxes = priors(AnchorConfig(sizes=(24, 48, 96, 192, 384), scales=2, rounded=False)).boxes[:6]
    sides = boxes[:, 2:] - boxes[:, :2]
    root = 2**0.5
    expected = [(24 * root, 24 / root), (48, 24), (24, 24), (24 * root, 24 * root), (24 / root, 24 * root), (24, 48)]
    torch.testing.assert_close(sides, torch.tensor(expected))
    torch.testing.assert_close(boxes[:, 2:] + boxes[:, :2], torch.zeros(6, 2))


@pytest.mark.parametrize("rounded", [True, False])
def test_an_offset_moves_anchors_by_that_part_of_a_stride(rounded):
    corner, middle = priors(AnchorConfig(rounded=rounded)), priors(AnchorConfig(rounded=rounded, offset=0.5))
    torch.testing.assert_close(middle.boxes, corner.boxes + 0.5 * corner.strides[:, None], atol=1e-4, rtol=0)


def test_points_in_the_middle_of_their_cells():
    """As MMDetection's, which adds half a stride."""
    small = {"backbone": "resnet18", "channels": 32}
    image, size = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]])
    for offset, first in ((0.0, 0.0), (0.5, 4.0)):
        with torch.no_grad():
            found = FCOSConfig(point_offset=offset, **small).build(2).eval()(image, size).priors
        centres = 0.5 * (found.boxes[:, :2] + found.boxes[:, 2:])
        assert centres[0].tolist() == [first, first]
        assert torch.equal(centres[1:8, 0] - centres[:7, 0], torch.full((7,), 8.0))
        assert centres[64].tolist() == [2 * first, 2 * first]


@pytest.mark.parametrize("offset", [-0.1, 1.0, float("nan")])
def test_offsets_outside_the_cell_are_refused(offset):
    for config, key in ((AnchorConfig, "offset"), (FCOSConfig, "point_offset")):
        with pytest.raises(ValidationError):
            config(**{key: offset})
