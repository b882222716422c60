"""From the maps of a pyramid to one list of priors."""

from torch import Tensor


def flatten_map(output: Tensor, channels: int) -> Tensor:
    """`[B, P * channels, H, W]` of one level as `[B, H * W * P, channels]`, the priors of a location together."""
    batch, _, height, width = output.shape
    out = output.view(batch, -1, channels, height, width).permute(0, 3, 4, 1, 2)
    return out.reshape(batch, -1, channels)
