"""The batch of a step that was not finite, run through its weights again, image by image."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mgdet.config import validate
from mgdet.data.fingerprint import describe_data
from mgdet.errors import CheckpointError
from mgdet.models.weights import class_outputs
from mgdet.plugins import load_plugins
from mgdet.text import first_line
from mgdet.training.checkpoint import UNFIT
from mgdet.training.distributed import World
from mgdet.training.nonfinite import load_capture
from mgdet.training.origin import data_of
from mgdet.training.step import forward


def replay(path: str, plugins: Sequence[str] = ()) -> Iterator[str]:
    """Lines of text: which weights were not finite before the step, then each image's losses and first bad layer.

    Args:
        path: a capture that the training wrote, `runs/<name>/nonfinite/step-*.pt`.
        plugins: modules or entry points that the training was done with.

    Raises:
        CheckpointError: it cannot be read, or its weights do not fit its configuration.
        ConfigError: this version of mgdet does not know its configuration.
    """
    load_plugins(plugins, (Path(),))
    capture = load_capture(path)
    experiment = validate(capture["config"], "the capture's configuration")
    try:
        outputs = class_outputs(capture["model"])
        network = experiment.model.build(outputs // experiment.model.layout.per_location)
        network.load_state_dict(capture["model"])
    except UNFIT as error:
        raise CheckpointError(
            f"{path}: its weights do not fit its own configuration ({first_line(error)}). It was made by another "
            "version of mgdet, or changed afterwards."
        ) from error
    bad = [n for n, p in network.state_dict().items() if p.is_floating_point() and not torch.isfinite(p).all()]
    yield f"step {capture['step']}: weights not finite before the step: {', '.join(bad) or 'none'}"
    data = data_of(capture)
    if "splits" in data:
        yield f"trained on the data set {describe_data(data)}"
    world = World(0, 1, torch.device("cpu"))
    for batch in capture["batches"]:
        for i, image_id in enumerate(batch.image_ids.tolist()):
            layers: list[str] = []
            hooks = _note_bad_layers(network, layers)
            losses = forward(network, network, batch[i : i + 1], experiment, world, capture["epoch"]).losses
            for hook in hooks:
                hook.remove()
            network.zero_grad()
            losses.total.backward()  # type: ignore[no-untyped-call]  # torch's stub
            norm = nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
            yield (
                f"image {image_id}: {', '.join(f'loss_{k} {float(v):g}' for k, v in losses.terms.items())}, "
                f"gradient norm {float(norm):g}, first layer not finite: {layers[0] if layers else 'none'}"
            )


def _note_bad_layers(network: nn.Module, found: list[str]) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks that append the name of every layer whose output is not finite, in order of execution."""

    def note(name: str):  # type: ignore[no-untyped-def]  # a forward hook
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    return [m.register_forward_hook(note(n)) for n, m in network.named_modules() if not list(m.children())]
