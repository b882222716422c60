"""Box geometry: against loops over Python floats, against torchvision, and on boxes that should not exist."""

import math

import pytest
import torch
import torchvision.ops as ops
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder

from mgdet.boxes import (
    MAX_LOG_RATIO,
    box_area,
    clip_to_image,
    decode_deltas,
    encode_deltas,
    giou,
    iou,
    is_degenerate,
    pairwise_iou,
)
from tests.reference.losses import giou_of, iou_of

NAN, INF = math.nan, math.inf
GOOD = (0.0, 0.0, 10.0, 10.0)

# name: box, is it degenerate
ODD = {
    "zero width": ((5.0, 0.0, 5.0, 10.0), True),
    "zero height": ((0.0, 5.0, 10.0, 5.0), True),
    "a point": ((5.0, 5.0, 5.0, 5.0), True),
    "inverted in x": ((8.0, 2.0, 2.0, 8.0), True),
    "inverted in both": ((8.0, 8.0, 2.0, 2.0), True),
    "NaN corner": ((NAN, 0.0, 10.0, 10.0), True),
    "NaN everywhere": ((NAN, NAN, NAN, NAN), True),
    "infinite corner": ((0.0, 0.0, INF, INF), True),
    "the whole plane": ((-INF, -INF, INF, INF), True),
    "area overflows": ((0.0, 0.0, 1e30, 1e30), False),
    "side overflows": ((-3e38, -3e38, 3e38, 3e38), False),
}
odd = pytest.mark.parametrize(("box", "degenerate"), ODD.values(), ids=ODD.keys())


def random_boxes(n, seed, spread=60.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * spread - spread / 4
    size = torch.rand(n, 2, generator=generator) * spread + 0.5
    return torch.cat([corner, corner + size], dim=1)


# --- IoU and GIoU


def test_iou_and_giou_equal_a_loop():
    a, b = random_boxes(200, 0), random_boxes(200, 1)
    expected = [iou_of(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert 20 < sum(v > 0 for v in expected) < 180, "both overlapping and disjoint pairs are needed"
    torch.testing.assert_close(iou(a, b), torch.tensor(expected), atol=1e-5, rtol=1e-5)
    expected = [giou_of(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert min(expected) < 0 < max(expected)
    torch.testing.assert_close(giou(a, b), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_iou_and_giou_equal_torchvisions():
    a, b = random_boxes(40, 2), random_boxes(70, 3)
    torch.testing.assert_close(pairwise_iou(a, b), ops.box_iou(a, b))
    torch.testing.assert_close(giou(a[:, None], b[None]), ops.generalized_box_iou(a, b), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(box_area(a), ops.box_area(a))


def test_pairwise_broadcasts_over_the_batch():
    a, b = random_boxes(6, 4).view(2, 3, 4), random_boxes(10, 5).view(2, 5, 4)
    got = pairwise_iou(a, b)
    assert got.shape == (2, 3, 5)
    for i in range(2):
        assert torch.equal(got[i], pairwise_iou(a[i], b[i]))


@pytest.mark.parametrize(
    ("other", "expected_iou", "expected_giou"),
    [
        ((0, 0, 10, 10), 1.0, 1.0),
        ((10, 0, 20, 10), 0.0, 0.0),  # share an edge: the hull is their union
        ((10, 10, 20, 20), 0.0, -0.5),  # share a corner: half of the hull is empty
        ((0, 0, 5, 10), 0.5, 0.5),
        ((30, 0, 40, 10), 0.0, -0.5),
    ],
    ids=["identical", "touching edges", "touching corners", "nested", "disjoint"],
)
def test_values_by_hand(other, expected_iou, expected_giou):
    a, b = torch.tensor(GOOD), torch.tensor(other, dtype=torch.float32)
    assert float(iou(a, b)) == pytest.approx(expected_iou)
    assert float(giou(a, b)) == pytest.approx(expected_giou)


coordinate = st.floats(-1000, 1000, width=32)
any_box = st.tuples(coordinate, coordinate, coordinate, coordinate)
proper_box = any_box.map(lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3])))


@given(st.lists(st.tuples(any_box, any_box), min_size=1, max_size=20))
def test_symmetric_and_bounded(pairs):
    """For every box with finite corners, inverted ones included."""
    a, b = (torch.tensor(column, dtype=torch.float32) for column in zip(*pairs, strict=True))
    overlap, general = iou(a, b), giou(a, b)
    assert torch.equal(overlap, iou(b, a))
    assert torch.equal(general, giou(b, a))
    assert ((overlap >= 0) & (overlap <= 1)).all()
    assert ((general >= -1 - 1e-5) & (general <= 1 + 1e-5)).all()
    assert (general <= overlap + 1e-5).all(), "GIoU only ever subtracts from IoU"


@given(proper_box)
def test_a_box_overlaps_itself_completely(box):
    t = torch.tensor(box, dtype=torch.float32)
    expected = 1.0 if float(box_area(t)) > 0 else 0.0
    assert float(iou(t, t)) == expected


@odd
def test_odd_boxes_overlap_nothing(box, degenerate):
    """0, not NaN, in either order and with themselves; the rows beside them are as without them."""
    a = torch.tensor([GOOD, box])
    got = pairwise_iou(a, a)
    assert got.tolist() == [[1.0, 0.0], [0.0, 0.0]]


@odd
def test_is_degenerate_names_exactly_the_odd_rows(box, degenerate):
    assert is_degenerate(torch.tensor([[GOOD, box]])).tolist() == [[False, degenerate]]


def test_area_of_an_inverted_box_is_zero():
    boxes = torch.tensor([(8.0, 8.0, 2.0, 2.0), (8.0, 2.0, 2.0, 8.0), (1.0, 2.0, 4.0, 8.0)])
    assert box_area(boxes).tolist() == [0.0, 0.0, 18.0]


# --- gradients


@pytest.mark.parametrize(
    "other",
    [GOOD, (30, 30, 40, 40), (10, 0, 20, 10), (10, 10, 20, 20), (2, 2, 8, 8), (5, 5, 15, 15), (5, 5, 5, 5)],
    ids=["identical", "disjoint", "touching edges", "touching corners", "nested", "overlapping", "a point inside"],
)
def test_gradient_of_giou_is_finite(other):
    a = torch.tensor(GOOD, requires_grad=True)
    b = torch.tensor([float(x) for x in other], requires_grad=True)
    giou(a, b).backward()
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(b.grad).all()


def test_gradient_of_giou_is_finite_where_nothing_has_an_area():
    a = torch.full((4,), 5.0, requires_grad=True)
    giou(a, a.detach().clone()).backward()
    assert torch.isfinite(a.grad).all()


def test_disjoint_boxes_are_drawn_together():
    """What GIoU is for: the gradient of a box to the right of its target moves it to the left."""
    a = torch.tensor((30.0, 0.0, 40.0, 10.0), requires_grad=True)
    giou(a, torch.tensor(GOOD)).backward()
    moved = a.detach() + 10 * a.grad
    assert float(moved[0] + moved[2]) < 70.0


def test_giou_gradcheck():
    a, b = random_boxes(20, 6).double().requires_grad_(), random_boxes(20, 7).double().requires_grad_()
    assert torch.autograd.gradcheck(giou, (a, b))


# --- coder

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0), (1.0, 2.0, 3.0, 4.0)]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_coder_is_torchvisions(weights):
    boxes, anchors = random_boxes(100, 8), random_boxes(100, 9)
    theirs = BoxCoder(weights)
    deltas = encode_deltas(boxes, anchors, weights)
    torch.testing.assert_close(deltas, theirs.encode_single(boxes, anchors))
    wild = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)) * 20  # past the bound of the size ratio
    assert (wild[:, 2:] / wild.new_tensor(weights[2:]) > MAX_LOG_RATIO).any()
    for d in (deltas, wild):
        torch.testing.assert_close(decode_deltas(d, anchors, weights), theirs.decode_single(d, anchors))


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_decode_inverts_encode(weights):
    boxes, anchors = random_boxes(100, 10).double(), random_boxes(100, 11).double()
    torch.testing.assert_close(decode_deltas(encode_deltas(boxes, anchors, weights), anchors, weights), boxes)
    deltas = torch.randn(100, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(encode_deltas(decode_deltas(deltas, anchors, weights), anchors, weights), deltas)


def test_deltas_by_hand():
    """A box twice as wide and half as high, moved by a quarter of the anchor's width to the right."""
    anchor, box = torch.tensor((0.0, 0.0, 8.0, 4.0)), torch.tensor((-2.0, 1.0, 14.0, 3.0))
    got = encode_deltas(box, anchor, (10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(got, torch.tensor((2.5, 0.0, 5 * math.log(2), -5 * math.log(2))))


@pytest.mark.parametrize("value", [100.0, 1e30, -1e30, INF], ids=str)
def test_decoded_size_is_bounded(value):
    anchor = torch.tensor((0.0, 0.0, 16.0, 16.0))
    box = decode_deltas(torch.tensor((0.0, 0.0, value, value)), anchor, (1.0, 1.0, 1.0, 1.0))
    side = 1000.0 if value > 0 else 0.0
    torch.testing.assert_close(box[2:] - box[:2], torch.tensor((side, side)))


def test_clip_takes_each_images_own_height_and_width():
    boxes = torch.tensor([(-5.0, -5.0, 100.0, 100.0)]).repeat(2, 1)[:, None]
    got = clip_to_image(boxes, torch.tensor([[20, 30], [50, 40]]))
    assert got[:, 0].tolist() == [[0.0, 0.0, 30.0, 20.0], [0.0, 0.0, 40.0, 50.0]]
