"""What data-parallel training would reach on any number of GPUs: formulas alone, nothing is measured here.

`predict` puts them together; docs/scaling.md explains them. Times are seconds, sizes bytes, rates per second.

Sources: Thakur, Rabenseifner and Gropp, IJHPCA 2005 (cost of collectives as latency and bandwidth); Patarasuk and Yuan,
JPDC 2009 (the ring needs the least bandwidth); Sanders, Speck and Träff, Parallel Computing 2009 (two trees with full
bandwidth); Li et al., VLDB 2020 (buckets of gradients, exchanged while others are computed); Blom 1958 (expectation of
the largest of some normal values); Young, CACM 1974, and Daly, FGCS 2006 (interval of checkpoints).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from pydantic import Field

from mgdet.config_base import Config

FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20
"""The buckets in which DistributedDataParallel exchanges gradients, bytes: the first is small, to begin early."""
SMALL_EXCHANGES = 2
"""Collectives of few numbers in a step that nothing overlaps: BatchNorm's statistics and the normalisers of losses."""
HOUR = 3600.0
UNIMPORTANT = 0.01
"""A share of the GPUs' time below which nothing is called a bottleneck."""


class Inputs(Config):
    """What is known of one training on one GPU. `assumed` names what was not measured, each with its source."""

    about: str = Field(default="", description="what was measured, and on what")
    images_per_gpu: int = Field(gt=0, description="images of one GPU's share of a step")
    before_backward_s: float = Field(gt=0, description="of a step: copy, network forward, labels, losses")
    backward_s: float = Field(gt=0, description="of a step: the gradients, without their exchange")
    optimizer_s: float = Field(ge=0, description="of a step: clipping, update, moving average")
    fixed_s: float = Field(default=0.0, ge=0, description="the part of these three that fewer images do not shorten")
    deviation_s: float = Field(default=0.0, ge=0, description="standard deviation of a step from batch to batch")
    gradient_bytes: int = Field(gt=0, description="of all gradients that are exchanged in a step")
    overlap: float = Field(default=1.0, ge=0, le=1, description="the share of backward beside which exchanges can run")
    loader_images_per_s: float = Field(gt=0, description="decoded by the loader of one GPU")
    image_bytes: float = Field(default=0.0, ge=0, description="of an encoded image, as it is read from the storage")
    train_images: int = Field(gt=0)
    epochs: int = Field(gt=0)
    val_images: int = Field(ge=0)
    evaluate_every: int = Field(default=1, gt=0, description="epochs between evaluations")
    evaluation_image_s: float = Field(ge=0, description="of one image on one GPU, network and post-processing")
    evaluation_alone_s: float = Field(ge=0, description="of an evaluation: what rank 0 does while all others wait")
    save_stall_s: float = Field(ge=0, description="for which a step waits when a checkpoint is copied")
    save_write_s: float = Field(ge=0, description="until a checkpoint counts, written beside the training")
    restart_s: float = Field(ge=0, description="from a fault to the next step")
    gpu_hours_per_fault: float = Field(gt=0, description="GPU hours in which one fault ends the training")
    largest_batch: int = Field(gt=0, description="images of a step beyond which the result suffers")
    assumed: dict[str, str] = Field(default={}, description="source of each value that was not measured here")


class Network(Config):
    """What connects the GPUs. `source` says where the numbers come from."""

    gpus_per_node: int = Field(gt=0)
    within_bytes_per_s: float = Field(gt=0, description="of each GPU to another one of its node, in one direction")
    within_latency_s: float = Field(ge=0, description="of a message within a node")
    between_bytes_per_s: float = Field(gt=0, description="of a whole node to the others, in one direction")
    between_latency_s: float = Field(ge=0, description="of a message from node to node")
    source: str


NETWORKS: dict[str, Network] = {
    name: Network(
        gpus_per_node=8,
        within_bytes_per_s=within,
        within_latency_s=within_latency,
        between_bytes_per_s=gbit * 1e9 / 8 * share,
        between_latency_s=latency,
        source=f"assumption: 8 GPUs, {inside}; a node has {gbit:g} Gbit/s, reaches {share:.0%}, {latency * 1e6:g} us",
    )
    for name, within, within_latency, inside, gbit, share, latency in (
        ("ethernet-10g", 10e9, 10e-6, "PCIe at 10 GB/s", 10, 0.7, 50e-6),
        ("ethernet-25g", 10e9, 10e-6, "PCIe at 10 GB/s", 25, 0.7, 50e-6),
        ("ethernet-100g", 10e9, 10e-6, "PCIe at 10 GB/s", 100, 0.7, 30e-6),
        ("efa-400g", 200e9, 5e-6, "NVLink at 200 GB/s", 400, 0.7, 20e-6),
        ("infiniband-3200g", 300e9, 5e-6, "NVLink at 300 GB/s", 3200, 0.8, 5e-6),
    )
}
"""Nominal bandwidths of usual machines, with the share of them that collectives tend to reach."""


@dataclass(frozen=True)
class Prediction:
    """A training on `gpus` GPUs. `lost` are shares of the time of all GPUs; with `useful` they add up to 1."""

    gpus: int
    images_per_gpu: int
    batch: int
    step_s: float
    images_per_s: float
    """Over the whole training, with everything that interrupts it."""
    useful: float
    """The share of the GPUs' time that one GPU alone, which waits for nothing, would need for the same images."""
    lost: dict[str, float]
    hours: float
    gpu_hours: float
    checkpoint_every_s: float
    fault_per_hour: float
    """Probability that at least one fault ends the training within an hour."""
    lost_to_faults_hours: float
    """Expected over the whole training: steps done again, restarts, and checkpoints made for their sake."""

    @property
    def bottleneck(self) -> str:
        """What costs the most of the GPUs' time, or that nothing does."""
        name, share = max(self.lost.items(), key=lambda item: item[1])
        return name if share >= UNIMPORTANT else "none"


def all_reduce_s(size: float, ranks: int, latency: float, bandwidth: float) -> float:
    """The sum of `size` bytes over all ranks of one flat network: by a ring or by two trees, whichever is faster."""
    if ranks == 1:
        return 0.0
    ring = 2 * (ranks - 1) * latency + 2 * (ranks - 1) / ranks * size / bandwidth
    trees = 2 * math.ceil(math.log2(ranks)) * latency + 2 * size / bandwidth
    return min(ring, trees)


def exchange_s(size: float, gpus: int, network: Network) -> float:
    """The sum over all GPUs: within each node, between the nodes (each GPU its part), and back within each node."""
    inside = min(gpus, network.gpus_per_node)
    nodes = nodes_of(gpus, network)
    within = all_reduce_s(size, inside, network.within_latency_s, network.within_bytes_per_s)
    return within + all_reduce_s(size, nodes, network.between_latency_s, network.between_bytes_per_s)


def nodes_of(gpus: int, network: Network) -> int:
    """The nodes that hold so many GPUs."""
    return -(-gpus // network.gpus_per_node)


def buckets(size: int) -> list[int]:
    """The sizes of the buckets of gradients, bytes, in the order in which they are exchanged."""
    if size <= FIRST_BUCKET:
        return [size]
    whole, rest = divmod(size - FIRST_BUCKET, BUCKET)
    return [FIRST_BUCKET, *[BUCKET] * whole, *([rest] if rest else [])]


def exposed_s(sizes: list[int], times: list[float], backward: float, overlap: float = 1.0) -> float:
    """What a step waits for the exchanges of buckets after its backward pass.

    A bucket is complete when its share of the gradients is: these come evenly over `backward` seconds. The exchanges
    run one after another. Only in the last `overlap` of the backward pass can any of them begin.
    """
    total, ready, free = sum(sizes), 0.0, (1 - overlap) * backward
    for size, taken in zip(sizes, times, strict=True):
        ready += backward * size / total
        free = max(free, ready) + taken
    return max(0.0, free - backward)


def slowest_s(deviation: float, ranks: int) -> float:
    """How much longer than the mean the slowest of all ranks takes, for normal times (Blom's approximation)."""
    return deviation * NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def daly_interval_s(cost: float, between_faults: float) -> float:
    """The useful seconds between checkpoints of `cost` seconds that lose the least (Daly 2006, equation 37).

    Its first term is Young's `sqrt(2 * cost * between_faults)`.
    """
    if cost >= 2 * between_faults:
        return between_faults
    ratio = math.sqrt(cost / (2 * between_faults))
    return math.sqrt(2 * cost * between_faults) * (1 + ratio / 3 + ratio**2 / 9) - cost


def predict(inputs: Inputs, gpus: int, network: Network, storage_bytes_per_s: float = math.inf) -> Prediction:
    """What the training would reach on so many GPUs of this network.

    Every GPU gets `images_per_gpu` images, fewer where all together would exceed `largest_batch`; those for which there
    is not even one image are idle.
    """
    images = max(1, min(inputs.images_per_gpu, inputs.largest_batch // gpus))
    working = min(gpus, inputs.largest_batch // images)
    batch = images * working
    shrink = images / inputs.images_per_gpu
    whole = inputs.before_backward_s + inputs.backward_s + inputs.optimizer_s
    computed = inputs.fixed_s + (whole - inputs.fixed_s) * shrink
    ideal = whole * shrink  # what one GPU with all its images needs for as many
    backward = inputs.backward_s * computed / whole

    sizes = buckets(inputs.gradient_bytes)
    exchanges = [exchange_s(size, working, network) for size in sizes]
    small = SMALL_EXCHANGES * exchange_s(64, working, network)
    parts = {
        "small batch per GPU": computed - ideal,
        "slowest GPU": slowest_s(inputs.deviation_s * math.sqrt(shrink), working),
        "gradient exchange": exposed_s(sizes, exchanges, backward, inputs.overlap) + small,
    }
    busy = ideal + sum(parts.values())
    loading = max(images / inputs.loader_images_per_s, batch * inputs.image_bytes / storage_bytes_per_s)
    limit = "loader" if images / inputs.loader_images_per_s == loading else "storage"
    parts[limit] = max(0.0, loading - busy)
    step = max(busy, loading)

    steps = inputs.epochs * inputs.train_images / batch
    evaluations = inputs.epochs / inputs.evaluate_every
    evaluation = inputs.val_images / working * inputs.evaluation_image_s + inputs.evaluation_alone_s
    undisturbed = steps * step + evaluations * evaluation

    between_faults = inputs.gpu_hours_per_fault * HOUR / gpus
    # A checkpoint stalls little but is written for long, and at most one is on its way.
    every = max(daly_interval_s(max(inputs.save_stall_s, 1e-3), between_faults), inputs.save_write_s, step)
    saving = undisturbed / every * inputs.save_stall_s
    after_a_fault = every / 2 + inputs.save_write_s + inputs.restart_s
    # The time of faults has faults too: t = u + t * a / M.
    disturbed = (undisturbed + saving) / max(1 - after_a_fault / between_faults, 1e-9)
    faults = disturbed - undisturbed - saving

    spent = {name: steps * seconds for name, seconds in parts.items()}
    spent |= {"evaluation": evaluations * evaluation, "faults and checkpoints": faults + saving}
    share = working / gpus
    lost = {name: seconds / disturbed * share for name, seconds in spent.items()} | {"idle, batch too small": 1 - share}
    return Prediction(
        gpus=gpus,
        images_per_gpu=images,
        batch=batch,
        step_s=step,
        images_per_s=inputs.epochs * inputs.train_images / disturbed,
        useful=steps * ideal / disturbed * share,
        lost=lost,
        hours=disturbed / HOUR,
        gpu_hours=disturbed * gpus / HOUR,
        checkpoint_every_s=every,
        fault_per_hour=-math.expm1(-HOUR / between_faults),
        lost_to_faults_hours=(faults + saving) / HOUR,
    )
