"""The runtime prepares images as mgdet does, and needs neither mgdet nor torch."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from mgdet.config_yaml import validate_as
from mgdet.data.collate import Collate, Sample
from mgdet.data.transforms import EvalTransform, TransformConfig
from mgdet.exporting.runtime import network_input, read_image, resize

PICTURES = [
    np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for height, width in ((70, 50), (37, 91), (64, 64), (1, 9))
]
RULES = (
    {"name": "fixed", "height": 64, "width": 96},
    {"name": "longest_edge", "height": 96, "width": 64},
    {"name": "shortest_edge", "sizes": [32, 48], "longest": 100},
)


@pytest.mark.parametrize("size", [(32, 32), (70, 50), (200, 31), (17, 300)])
def test_resizing_is_torchvisions_to_the_bit(size):
    if (
        "AVX2" not in torch.backends.cpu.get_cpu_capability()
        and "AVX512" not in torch.backends.cpu.get_cpu_capability()
    ):
        pytest.skip("torchvision resizes in float32 here")
    for picture in PICTURES:
        expected = F.resize(torch.from_numpy(picture).permute(2, 0, 1).contiguous(), list(size), antialias=True)
        assert np.array_equal(resize(picture, *size), expected.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["name"])
def test_the_inputs_are_those_of_an_evaluation(rule):
    transform = EvalTransform(validate_as(TransformConfig, {"resize": rule}, "test"))
    nothing = torch.zeros(0, 4), torch.zeros(0).long()
    samples = [
        Sample(transform(torch.from_numpy(p).permute(2, 0, 1).contiguous(), *nothing), p.shape[:2], i, i)
        for i, p in enumerate(PICTURES)
    ]
    batch = Collate(32)(samples)
    images, sizes, originals = network_input(PICTURES, {"resize": rule, "size": None, "batch": None, "divisor": 32})
    assert np.array_equal(sizes, batch.sizes.numpy())
    assert np.array_equal(originals, batch.original_sizes.numpy())
    assert images.shape == tuple(batch.images.shape)
    assert np.abs(images.astype(int) - batch.images.numpy()).max() <= 1  # 0 with AVX2
    with pytest.raises(ValueError, match=r"takes 32 x 32: export it with"):
        network_input(PICTURES, {"resize": rule, "size": [32, 32], "batch": None, "divisor": 32})


def test_images_are_read_upright_and_in_rgb(tmp_path):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURES[0]).save(file, "png", exif=exif)
    (tmp_path / "a.png").write_bytes(file.getvalue())
    for image in (file.getvalue(), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(read_image(image), np.rot90(PICTURES[0], -1))
    assert np.array_equal(read_image(Image.fromarray(PICTURES[0][..., 0])), PICTURES[0][..., :1].repeat(3, 2))
    for bad in (b"no image", tmp_path / "nothing.png", PICTURES[0].astype(float), PICTURES[0][..., :2]):
        with pytest.raises(ValueError, match=r"expected|cannot be read"):
            read_image(bad)
