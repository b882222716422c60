"""Transforms: boxes follow pixels, sizes are as asked, randomness is a function of (seed, epoch, position)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from mgdet.data.transforms import EvalTransform, TrainTransform, TransformConfig

FIXED = {"name": "fixed", "height": 60, "width": 80}
ALL = {
    "resize": FIXED,
    "vflip": 0.5,
    "color": {"brightness": 0.3, "hue": 0.1},
    "scale_jitter": {"low": 0.4, "high": 1.8},
}


def picture(height: int = 90, width: int = 120) -> tuple[Tensor, Tensor, Tensor]:
    """A black image with one white rectangle, and its box."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, 20:50, 30:90] = 255
    return image, torch.tensor([[30.0, 20.0, 90.0, 50.0]]), torch.tensor([4])


def bright_box(image: Tensor) -> Tensor:
    ys, xs = torch.nonzero(image[0] > 127, as_tuple=True)
    return torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()


@pytest.mark.parametrize(
    "config",
    [
        {"resize": FIXED},
        {"resize": {"name": "longest_edge", "height": 200, "width": 100}},
        {"resize": {"name": "shortest_edge", "sizes": (50, 70, 100), "longest": 120}},
        {"resize": FIXED, "hflip": 1.0, "vflip": 1.0},
        {"resize": FIXED, "scale_jitter": {"low": 0.3, "high": 2.0}},
        {"resize": {"name": "longest_edge", "height": 64, "width": 64}, "scale_jitter": {"low": 0.3, "high": 2.0}},
    ],
)
def test_boxes_follow_the_pixels(config: dict[str, object]) -> None:
    transform = TrainTransform(TransformConfig.model_validate(config), seed=3)
    for position in range(20):
        out = transform(*picture(), epoch=0, position=position)
        assert out.image.dtype == torch.uint8
        assert out.boxes.dtype == torch.float32
        if len(out.boxes):
            assert (out.boxes[0] - bright_box(out.image)).abs().max() <= 1.5
            assert out.labels.tolist() == [4]


@pytest.mark.parametrize(
    ("resize", "size"),
    [
        (FIXED, (60, 80)),
        ({"name": "longest_edge", "height": 45, "width": 300}, (45, 60)),
        ({"name": "longest_edge", "height": 500, "width": 240}, (180, 240)),
        ({"name": "shortest_edge", "sizes": (45, 30), "longest": 200}, (45, 60)),
        ({"name": "shortest_edge", "sizes": (180,), "longest": 160}, (120, 160)),
    ],
)
def test_eval_sizes(resize: dict[str, object], size: tuple[int, int]) -> None:
    out = EvalTransform(TransformConfig.model_validate({"resize": resize}))(*picture())
    assert out.image.shape == (3, *size)
    scale = torch.tensor([size[1] / 120, size[0] / 90]).repeat(2)
    torch.testing.assert_close(out.boxes, picture()[1] * scale)


def test_several_shortest_edges_are_drawn_from() -> None:
    config = TransformConfig.model_validate({"resize": {"name": "shortest_edge", "sizes": (50, 70, 90)}})
    transform = TrainTransform(config, seed=0)
    assert {transform(*picture(), epoch=0, position=i).image.shape[1] for i in range(40)} == {50, 70, 90}


def test_same_numbers_same_sample_whatever_was_drawn_before() -> None:
    transform = TrainTransform(TransformConfig.model_validate(ALL), seed=5)
    first = transform(*picture(), epoch=2, position=9)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = transform(*picture(), epoch=2, position=9)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(before, torch.get_rng_state())  # the training's own randomness is left alone


def test_another_epoch_position_or_seed_is_another_sample() -> None:
    config = TransformConfig.model_validate(ALL)
    keys = [(s, e, p) for s in range(2) for e in range(2) for p in range(2)]
    outs = [TrainTransform(config, seed=s)(*picture(), epoch=e, position=p).image for s, e, p in keys]
    assert len({out.numpy().tobytes() for out in outs}) == len(keys)


def test_scale_jitter_gives_the_exact_size() -> None:
    transform = TrainTransform(TransformConfig.model_validate(ALL), seed=0)
    assert {transform(*picture(), epoch=0, position=i).image.shape for i in range(30)} == {(3, 60, 80)}


def test_small_boxes_are_dropped_with_their_labels() -> None:
    image, _, _ = picture()
    boxes = torch.tensor([[0.0, 0.0, 1.0, 40.0], [10.0, 10.0, 40.0, 40.0], [5.0, 5.0, 5.0, 5.0]])
    out = TrainTransform(TransformConfig(), 0)(image, boxes, torch.tensor([1, 2, 3]), epoch=0, position=0)
    assert out.labels.tolist() == [1, 2]  # resizing to 320 x 320 made the first 2.7 pixels wide
    shrunk = TransformConfig.model_validate({"resize": {"name": "fixed", "height": 45, "width": 60}})
    out = TrainTransform(shrunk, 0)(image, boxes, torch.tensor([1, 2, 3]), epoch=0, position=0)
    assert out.labels.tolist() == [2]


def test_images_without_boxes() -> None:
    empty = (torch.zeros(3, 20, 30, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    config = TransformConfig.model_validate(ALL)
    for out in (TrainTransform(config, 0)(*empty, epoch=0, position=0), EvalTransform(config)(*empty)):
        assert out.boxes.shape == (0, 4)
        assert out.labels.shape == (0,)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 10**6))
def test_any_image_size_and_boxes_stay_inside(height: int, width: int, position: int) -> None:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    boxes = torch.rand(5, 4, generator=torch.Generator().manual_seed(position)).sort(dim=1).values
    boxes = boxes[:, [0, 1, 2, 3]] * torch.tensor([width, height, width, height])
    out = TrainTransform(TransformConfig.model_validate(ALL), 1)(
        image, boxes, torch.arange(5), epoch=0, position=position
    )
    assert out.image.shape == (3, 60, 80)
    assert (out.boxes >= 0).all()
    assert (out.boxes <= torch.tensor([80, 60, 80, 60])).all()
    assert ((out.boxes[:, 2:] - out.boxes[:, :2]) >= 1).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"hflip": 1.5},
        {"hflipp": 0.5},
        {"resize": {"name": "fixed", "height": 0, "width": 5}},
        {"resize": {"name": "nearest", "height": 5, "width": 5}},
        {"resize": {"name": "shortest_edge", "sizes": ()}},
        {"color": {"hue": 0.6}},
        {"scale_jitter": {"low": 2.0, "high": 1.0}},
        {"scale_jitter": {}, "resize": {"name": "shortest_edge"}},
    ],
)
def test_wrong_configuration(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TransformConfig.model_validate(wrong)
