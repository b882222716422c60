"""One training step beside that of torchvision's own detector with the same network, batch, optimizer and labels.

All take turns in one process, so that other work on the machine changes seconds, but hardly ratios. On a CPU the time
is that of the processor; set OMP_NUM_THREADS=1 for one thread.

python benchmarks/step.py --model retinanet --backbone resnet18 --batch 8 --image 256 320 --classes 3
python benchmarks/step.py --model fcos --backbone resnet50 --batch 2 --image 320 448 --classes 80
python benchmarks/step.py --loss 2 76725 80
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torch.optim import SGD
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from mgdet.config import validate
from mgdet.models.losses import FocalLoss, QualityFocalLoss, VarifocalLoss
from mgdet.models.losses.classification import ClassTerm
from mgdet.structures import Batch, Labels, Targets, pad_targets
from mgdet.training.distributed import World
from mgdet.training.optim import build_optimizer
from mgdet.training.step import forward

Action = Callable[[], object]


def random_batch(images: int, height: int, width: int, objects: int, classes: int) -> Batch:
    """Noise with objects of 12 to 72 pixels."""
    limit = torch.tensor([width, height])
    corner = torch.rand(images, objects, 2) * 0.7 * limit
    end = torch.minimum(corner + torch.rand(images, objects, 2) * 60 + 12, limit)
    targets = pad_targets(list(torch.cat([corner, end], 2)), list(torch.randint(0, classes, (images, objects))))
    sizes, index = torch.tensor([[height, width]] * images), torch.arange(images)
    pixels = torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8)
    return Batch(pixels, sizes, sizes, targets, index, index)


def ours(args: argparse.Namespace, batch: Batch, assigner: str, channels_last: bool = False) -> Action:
    """A step of mgdet."""
    points = args.model == "fcos"
    model = {"name": args.model, "backbone": args.backbone, "channels": args.channels, "norm": "bn"}
    experiment = validate(
        {
            "name": "step",
            "data": {"uri": "none"},
            "model": model | {"head_norm": "gn" if points else "none"},
            "assigner": {"name": assigner},
            "loss": {"box": {"name": "giou" if points else "l1"}},
        },
        "benchmarks/step.py",
    )
    detector = experiment.model.build(args.classes).to(args.device)
    if channels_last:
        detector.to(memory_format=torch.channels_last)
    detector.train()
    optimizer, world = build_optimizer(detector, experiment.train.optimizer), World.current(args.device)

    def step() -> None:
        forward(detector, detector, batch, experiment, world, 0.0).losses.total.backward()  # type: ignore[no-untyped-call]  # torch's stub
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def torchvisions(args: argparse.Namespace, batch: Batch) -> Action:
    """A step of torchvision's detector of that name, with the same pyramid."""
    network = getattr(torchvision.models, args.backbone)(weights=None)
    widths = [128, 256, 512] if args.backbone in ("resnet18", "resnet34") else [512, 1024, 2048]
    layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
    extra = LastLevelP6P7(args.channels, args.channels)
    body = BackboneWithFPN(network, layers, widths, args.channels, extra_blocks=extra)
    size = {"min_size": min(args.image), "max_size": max(args.image)}
    detector: nn.Module = (FCOS if args.model == "fcos" else RetinaNet)(body, args.classes, **size).to(args.device)
    detector.train()
    optimizer = SGD(detector.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    objects = [
        {"boxes": boxes, "labels": labels}
        for boxes, labels in zip(batch.targets.boxes, batch.targets.labels, strict=True)
    ]

    def step() -> None:
        losses: dict[str, Tensor] = detector([image.float() / 255 for image in batch.images], objects)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]  # torch's stub
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def class_losses(images: int, priors: int, classes: int, device: torch.device) -> list[dict[str, Action]]:
    """Each class loss forward and backward, by the formula and with the derivative written out."""
    logits = (1.5 * torch.randn(images, priors, classes, device=device) - 4).requires_grad_()
    positive = torch.rand(images, priors, device=device) < 0.01
    labels = Labels(torch.where(positive, 0, -1), positive.float())
    targets = Targets(torch.zeros(images, 1, 4), torch.zeros(images, 1, dtype=torch.int64), torch.ones(images, 1) > 0)
    targets = targets.to(device)

    def action(of_priors: Callable[[Tensor, Labels, Targets], Tensor]) -> Action:
        def both() -> None:
            logits.grad = None
            of_priors(logits, labels, targets).sum().backward()  # type: ignore[no-untyped-call]  # torch's stub

        return both

    return [
        {
            f"{loss.name}, formula": action(partial(ClassTerm.of_priors, loss)),
            f"{loss.name}, fused": action(loss.of_priors),
        }
        for loss in (FocalLoss(), QualityFocalLoss(), VarifocalLoss())
    ]


def compare(arms: dict[str, Action], rounds: int, device: torch.device) -> None:
    """Run all in turn, and print the median of each and of its ratio to the first."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    spent: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, action in arms.items():
            start = clock()
            action()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:  # the first is not counted
                spent[name].append(clock() - start)
    first = next(iter(spent.values()))
    for name, seconds in spent.items():
        ratios = sorted(a / b for a, b in zip(first, seconds, strict=True))
        middle, low, high = statistics.median(ratios), ratios[0], ratios[-1]
        print(f"{name:<28}{statistics.median(seconds) * 1e3:9.1f} ms   speed {middle:.3f} [{low:.2f} .. {high:.2f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["retinanet", "fcos"], default="retinanet")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image", type=int, nargs=2, default=[256, 320], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--objects", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--loss", type=int, nargs=3, metavar=("IMAGES", "PRIORS", "CLASSES"), help="the losses alone")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.loss:
        images, priors, classes = args.loss
        for pair in class_losses(images, priors, classes, args.device):
            compare(pair, args.rounds, args.device)
        return
    height, width = args.image
    batch = random_batch(args.batch, height, width, args.objects, args.classes).to(args.device)
    baseline = "max_iou" if args.model == "retinanet" else "center_sampling"
    arms = {"torchvision": torchvisions(args, batch), f"mgdet, {baseline}": ours(args, batch, baseline)}
    arms[f"mgdet, {baseline}, NHWC"] = ours(args, batch, baseline, channels_last=True)
    for assigner in ("mutual_guidance", "mutual_labeling", "task_aligned", "simota"):
        arms[f"mgdet, {assigner}"] = ours(args, batch, assigner)
    compare(arms, args.rounds, args.device)


if __name__ == "__main__":
    main()
