"""Priors over regions to be ignored, one prior and one region at a time."""

import torch

from mgdet.structures import IGNORED, NEGATIVE


def ignore_regions(gt_index: torch.Tensor, boxes: torch.Tensor, regions: torch.Tensor, overlap: float) -> torch.Tensor:
    """Labels `[B, A]` in which background over a region is ignored."""
    out = gt_index.clone()
    for b, of_image in enumerate(regions.double().tolist()):
        for a, (x1, y1, x2, y2) in enumerate(boxes.double().tolist()):
            for u1, v1, u2, v2 in of_image:
                if u2 <= u1 or v2 <= v1:
                    continue
                shared = max(0.0, min(x2, u2) - max(x1, u1)) * max(0.0, min(y2, v2) - max(y1, v1))
                if shared >= overlap * (x2 - x1) * (y2 - y1) and out[b, a] == NEGATIVE:
                    out[b, a] = IGNORED
    return out
