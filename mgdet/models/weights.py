"""Initial weights: torchvision's ImageNet and COCO weights, or a checkpoint of ours."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torchvision.models import get_model_weights

from mgdet.errors import CheckpointError, ConfigError
from mgdet.models.backbones import ResNet
from mgdet.models.detector import CocoWeights, Detector, DetectorConfig
from mgdet.models.download import fetch
from mgdet.safe_load import load_tensors
from mgdet.storage import locate
from mgdet.structures import read_categories
from mgdet.text import first_of

CLASS_HEAD = "head.classification_head.cls_logits."
"""Where a detector keeps the layers that depend on the number of classes."""
BODY = "backbone.body."
"""Where a detector keeps its backbone."""
NEW_IN_BODY = f"{BODY}output_norms."
"""What of it no classification network has: it keeps its initial values."""
QUALITY_BRANCHES = ("quality.", "head.quality.", "head.regression_head.bbox_ctrness.")
"""Where RetinaNet, a head for each level and all other heads keep the branch that predicts a box's quality."""
CENTRE_PRIOR = "centre_prior."
"""Where a detector keeps what AutoAssign learns of each class."""
IMAGENET = ("imagenet", "imagenet_v1")
NAMED_WEIGHTS = ("none", *IMAGENET, "coco_v1", "coco_v2")
"""Values of `model.weights` that are no path; not every detector has both of COCO's."""


def class_outputs(state: Mapping[str, Tensor]) -> int:
    """Outputs of the class layer in a state dict, those of one location; 0 where there is none."""
    return next((v.numel() for k, v in state.items() if k.startswith(CLASS_HEAD) and k.endswith("bias")), 0)


def initialise(network: Detector, config: DetectorConfig, classes: Sequence[str] = ()) -> list[str]:
    """Load what `config.weights` asks for into `network`; returns what was done, a sentence each.

    Args:
        network: the detector, with its random weights.
        config: its configuration.
        classes: the names of its classes in order of the label. From a checkpoint whose classes have other names, or
            another order, the class head is not taken: its rows would count for other classes. Without names, which
            only a checkpoint of ours has, the numbers of classes decide.

    Raises `CheckpointError` where the weights cannot be downloaded, read, or do not fit, `ConfigError` where the
    architecture is not the one that they were made for.
    """
    if config.weights == "none":
        return ["weights: random initialisation"]
    if config.weights in IMAGENET:
        state, source = config.backbone.pretrained("imagenet" if config.weights == "imagenet" else "imagenet_v1")
        return _load(network, {BODY + k: v for k, v in state.items()}, source, backbone_only=True)
    if config.weights in NAMED_WEIGHTS:
        enum = get_model_weights(_coco(config).builder).DEFAULT
        return _load(network, fetch(enum), f"COCO weights {enum}")
    state, place = _read(config.weights)
    return _load(network, _weights_of(state, place), f"checkpoint {place}", other=_other_classes(state, classes))


def require_file(weights: str) -> None:
    """Check that a `model.weights` which is no name is there, a file or a run. Raises `CheckpointError`."""
    if weights in NAMED_WEIGHTS:
        return
    try:
        if locate(weights).exists():
            return
    except OSError as error:
        raise CheckpointError(f"model.weights={weights!r} cannot be read: {error}") from error
    raise CheckpointError(f"model.weights={weights!r}: not a file, and not one of {', '.join(NAMED_WEIGHTS)}")


def _read(place: str) -> tuple[dict[str, Any], str]:
    """The content of a file at a path or URI, and how messages call it. Raises `CheckpointError`."""
    require_file(place)
    file = locate(place)
    try:
        return load_tensors(file.path if file.is_local else io.BytesIO(file.read_bytes()), str(file)), str(file)
    except OSError as error:
        raise CheckpointError(f"model.weights={place!r} cannot be read: {error}") from error


def _weights_of(state: dict[str, Any], path: str) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint of ours, else its raw ones; any other file is a state dict itself."""
    found = state.get("ema") or state.get("model") or state
    if isinstance(found, dict) and isinstance(found.get("weights"), dict):  # EMA.state_dict: weights and counter
        found = found["weights"]
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise CheckpointError(f"{path}: holds no weights: expected a checkpoint of mgdet or a state dict of tensors")
    return found


def _other_classes(state: dict[str, Any], classes: Sequence[str]) -> str:
    """How the classes of a checkpoint differ from `classes`, those of the network; empty where they do not."""
    try:
        theirs = [c.name for c in read_categories(state["categories"])]
    except (KeyError, ValueError):  # a state dict of tensors, which says nothing about its classes
        return ""
    if not classes or theirs == list(classes):
        return ""
    if sorted(theirs) == sorted(classes):
        label = next(i for i, (a, b) in enumerate(zip(theirs, classes, strict=True)) if a != b)
        return f"classes in another order: label {label} is {theirs[label]!r} there and {classes[label]!r} here"
    return f"{len(theirs)} classes there ({first_of(theirs, 6)}), {len(classes)} here ({first_of(classes, 6)})"


def _coco(config: DetectorConfig) -> CocoWeights:
    """The COCO weights asked for, if the architecture is theirs."""
    if config.weights not in config.coco_weights:
        known = ", ".join(config.coco_weights)
        raise ConfigError(
            f"model.weights={config.weights}: torchvision has no such weights of {config.name}, only {known}"
        )
    found = config.coco_weights[config.weights]
    expected = {"backbone": ResNet(name="resnet50"), "channels": 256, **found.settings}
    wrong = {k: v for k, v in expected.items() if getattr(config, k) != v}
    if wrong:
        fix = " ".join(f"model.{k}={v}" for k, v in wrong.items())
        raise ConfigError(f"model.weights={config.weights} was trained with another architecture; set {fix}")
    return found


def _without_branch(
    network: Detector, own: dict[str, Tensor], state: dict[str, Tensor], notes: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Both state dicts without the quality branch where only one side has it."""
    here, there = ({k for k in s if k.startswith(QUALITY_BRANCHES)} for s in (own, state))
    if here and not there and network.config.weights not in IMAGENET:
        notes.append("weights: the quality branch keeps its random initialisation (there is none there)")
        return {k: v for k, v in own.items() if k not in here}, state
    if there and not here:
        notes.append("weights: the quality branch there is left out (model.quality=none)")
        return own, {k: v for k, v in state.items() if k not in there}
    return own, state


def _load(
    network: Detector, state: dict[str, Tensor], source: str, backbone_only: bool = False, other: str = ""
) -> list[str]:
    """Load a state dict; `other` says how the classes that it is for differ from the network's, if they do."""
    notes = [f"weights: {source}"]
    own = network.state_dict()
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked") or k in own}
    outputs = class_outputs(state)
    if outputs and outputs != class_outputs(own) and not other:
        theirs = outputs // network.config.layout.per_location
        other = f"{theirs} classes there, {network.num_classes} here"
    if other:
        state = {k: v for k, v in state.items() if not k.startswith((CLASS_HEAD, CENTRE_PRIOR))}
        notes.append(f"weights: class head re-initialised ({other})")
        own = {k: v for k, v in own.items() if not k.startswith((CLASS_HEAD, CENTRE_PRIOR))}
    elif any(k.startswith(CENTRE_PRIOR) for k in own.keys() ^ state.keys()):  # one side has learned none
        own, state = ({k: v for k, v in s.items() if not k.startswith(CENTRE_PRIOR)} for s in (own, state))
    own, state = _without_branch(network, own, state, notes)
    mismatched = [k for k, v in state.items() if k in own and own[k].shape != v.shape]
    unexpected = [k for k in state if k not in own]
    missing = [
        k
        for k in own
        if k not in state
        and not k.endswith("num_batches_tracked")
        and (not backbone_only or (k.startswith(BODY) and not k.startswith(NEW_IN_BODY)))
    ]
    if mismatched or unexpected or missing:
        raise CheckpointError(
            f"{source} does not fit this architecture: "
            + "; ".join(
                f"{what} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
                for what, keys in (("missing", missing), ("unexpected", unexpected), ("other shape", mismatched))
                if keys
            )
            + ". Make model.* in the configuration the one that the weights were trained with."
        )
    network.load_state_dict(state, strict=False)
    if other:
        network.reset_class_head()
    return notes
