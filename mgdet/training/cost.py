"""What a detector costs where it is used."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from mgdet.evaluation.evaluator import LATENCY, PARAMETERS
from mgdet.models import Detector
from mgdet.training.precision import Asked, autocast

ROUNDS, WARM_UP = 24, 3
MULTIPLE = 32
"""Heights and widths are padded to multiples of this, as `data.loader.divisor` has it by default."""


@torch.no_grad()
def cost_of(
    network: Detector, images: Sequence[Tensor], device: torch.device, precision: Asked, wait: Callable[[], None]
) -> dict[str, float]:
    """The median time of one image, from its pixels on the device to its detections, and the number of parameters.

    Args:
        network: in evaluation mode.
        images: uint8 `[3, h, w]` each, input of the network; they are taken in turn.
        device: of the network.
        precision: in which it computes.
        wait: returns when the device has done its work.
    """
    times = []
    for number in range(WARM_UP + ROUNDS if images else 0):
        image = images[number % len(images)].to(device)
        height, width = image.shape[1:]
        size = torch.tensor([[height, width]], device=device)
        batch = pad(image, (0, -width % MULTIPLE, 0, -height % MULTIPLE))[None]
        wait()
        start = time.perf_counter()
        with autocast(device, precision):
            predictions = network(batch, size)
        network.detect(predictions, size, size)
        wait()
        times.append(time.perf_counter() - start)
    found = {PARAMETERS.name: float(sum(p.numel() for p in network.parameters()))}
    return found | ({LATENCY.name: 1e3 * statistics.median(times[WARM_UP:])} if times else {})
