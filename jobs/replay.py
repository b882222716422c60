"""Find out why a step was not finite: run the captured batch through the captured weights again.

    python jobs/replay.py runs/x/nonfinite/step-00001234-rank-0.pt

Prints which image, which term of the loss and which layer are not finite first.
"""

import sys

import torch
from torch import Tensor, nn

from mgdet.cli.run import arguments, run_cli
from mgdet.config import validate
from mgdet.structures import Batch, Targets
from mgdet.training.distributed import World
from mgdet.training.nonfinite import load_capture
from mgdet.training.step import forward


def first_bad_layers(network: nn.Module, found: list[str]) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks that note every layer whose output is not finite, in order of execution."""

    def note(name: str):
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    return [m.register_forward_hook(note(n)) for n, m in network.named_modules() if not list(m.children())]


def main() -> int:
    """Exit status 0: the capture was read; 2: it could not be."""
    parser = arguments(__doc__)
    parser.add_argument("capture")
    args = parser.parse_args()
    return run_cli(lambda: replay(args.capture), "nothing was written")


def replay(path: str) -> int:
    capture = load_capture(path)
    experiment = validate(capture["config"], "the capture's configuration")
    outputs = capture["model"]["head.classification_head.cls_logits.bias"].numel()
    network = experiment.model.build(outputs // experiment.model.layout.per_location)
    network.load_state_dict(capture["model"])
    bad = [n for n, p in network.state_dict().items() if p.is_floating_point() and not torch.isfinite(p).all()]
    print(f"step {capture['step']}: weights not finite before the step: {', '.join(bad) or 'none'}")
    world = World(0, 1, torch.device("cpu"))
    for batch in capture["batches"]:
        for i, image_id in enumerate(batch.image_ids.tolist()):
            row = slice(i, i + 1)
            targets = Targets(*(t[row] for t in batch.targets))
            one = Batch(*(targets if name == "targets" else value[row] for name, value in batch._asdict().items()))
            layers: list[str] = []
            hooks = first_bad_layers(network, layers)
            losses = forward(network, network, one, experiment, world, capture["epoch"]).losses
            for hook in hooks:
                hook.remove()
            network.zero_grad()
            losses.total.backward()
            norm = nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
            print(
                f"image {image_id}: loss_cls {float(losses.cls):g}, loss_box {float(losses.box):g}, gradient norm "
                f"{float(norm):g}, first layer not finite: {layers[0] if layers else 'none'}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
