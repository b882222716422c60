"""Box geometry on plain tensors: areas, IoU, GIoU, and the coder between boxes and regression targets.

Boxes are `[..., 4]` float tensors `(x1, y1, x2, y2)` in pixels, corners continuous (a box from 0 to 10 is 10 wide).
All functions broadcast over leading dimensions, run on the device of their input and never synchronise with the host.
"""

import math

import torch
from torch import Tensor

MAX_LOG_RATIO = math.log(1000.0 / 16)
"""Bound of a decoded log size ratio: without it `exp` overflows for an untrained regressor (as torchvision)."""


def box_area(boxes: Tensor) -> Tensor:
    """Area in square pixels, `[..., 4] -> [...]`; inverted boxes have area 0, not a product of two negatives."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def is_degenerate(boxes: Tensor) -> Tensor:
    """True where a box has no area or a coordinate that is not finite, `[..., 4] -> [...]` bool."""
    return ~(torch.isfinite(boxes).all(dim=-1) & (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1]))


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    return overlap[..., 0] * overlap[..., 1]


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise IoU in [0, 1] of boxes that broadcast against each other, `[..., 4] x [..., 4] -> [...]`.

    Degenerate input gives 0, never NaN: an empty union, an infinite corner or a NaN all mean "no overlap".
    """
    ax1, ay1, ax2, ay2 = a.unbind(-1)
    bx1, by1, bx2, by2 = b.unbind(-1)  # one at a time, which vectorises where coordinates lie together
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    intersection = width * height
    area_a = (ax2 - ax1).clamp(min=0) * (ay2 - ay1).clamp(min=0)
    area_b = (bx2 - bx1).clamp(min=0) * (by2 - by1).clamp(min=0)
    union = area_a + area_b - intersection
    return torch.where(union > 0, intersection / union, 0.0).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every `a` with every `b`: `[..., G, 4] x [..., A, 4] -> [..., G, A]`."""
    return iou(a.unsqueeze(-2), b.unsqueeze(-3))


def pairwise_diou(a: Tensor, b: Tensor) -> Tensor:
    """DIoU of every `a` with every `b`: `[..., G, 4] x [..., A, 4] -> [..., G, A]`."""
    return diou(a.unsqueeze(-2), b.unsqueeze(-3))


def diou(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise DIoU in [-1, 1] (Zheng et al., AAAI 2020, equation 5), `[..., 4] x [..., 4] -> [...]`.

    The IoU minus the squared distance of the centres over the squared diagonal of the hull; -1 where that overflows.
    """
    dx, dy = (0.5 * (a[..., :2] + a[..., 2:]) - 0.5 * (b[..., :2] + b[..., 2:])).unbind(-1)
    width, height = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).unbind(-1)
    penalty = (dx * dx + dy * dy) / (width * width + height * height)
    return (iou(a, b) - penalty).nan_to_num(nan=-1.0, posinf=-1.0, neginf=-1.0)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise generalized IoU in [-1, 1] (Rezatofighi et al., CVPR 2019, Algorithm 1), differentiable in both."""
    intersection = _intersection(a, b)
    union = box_area(a) + box_area(b) - intersection
    hull_size = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    hull = hull_size[..., 0] * hull_size[..., 1]
    eps = torch.finfo(a.dtype).eps
    return intersection / union.clamp(min=eps) - (hull - union) / hull.clamp(min=eps)


def clip_to_image(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes cut at the border of their image: `[B, N, 4]` and sizes `[B, 2]` as (height, width) in pixels."""
    limit = sizes.flip(-1).repeat(1, 2).unsqueeze(1).to(boxes.dtype)  # (w, h, w, h)
    return torch.minimum(boxes.clamp(min=0), limit)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def encode_deltas(boxes: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Regression targets `(dx, dy, dw, dh)` of `boxes` with respect to `anchors`, both `[..., 4]`.

    dx, dy are the centre's shift in anchor sizes, dw, dh the log of the size ratio, each times its weight (the
    reciprocal of what SSD calls variances). The caller must not pass degenerate boxes: their log is not finite.
    """
    centre, size = _centre_size(boxes)
    anchor_centre, anchor_size = _centre_size(anchors)
    scale = boxes.new_tensor(weights)
    return torch.cat([(centre - anchor_centre) / anchor_size, torch.log(size / anchor_size)], dim=-1) * scale


def decode_deltas(deltas: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Inverse of `encode_deltas`; size ratios are bounded by `MAX_LOG_RATIO`, so the result is finite."""
    anchor_centre, anchor_size = _centre_size(anchors)
    unscaled = deltas / deltas.new_tensor(weights)
    centre = unscaled[..., :2] * anchor_size + anchor_centre
    half = 0.5 * torch.exp(unscaled[..., 2:].clamp(max=MAX_LOG_RATIO)) * anchor_size
    return torch.cat([centre - half, centre + half], dim=-1)
