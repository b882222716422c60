"""Any network of timm (PyTorch Image Models) that gives its intermediate maps."""

import bisect
import difflib
import re
from types import ModuleType
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mgdet.errors import CheckpointError, ConfigError
from mgdet.models.backbones.base import MEAN, STD, STRIDES, Backbone, BackboneNorm, Stages


class Timm(Backbone):
    """A network of timm with `features_only`, by timm's name, which may name its weights too: `resnet50.a1_in1k`.

    It needs the extra `mgdet[timm]`. timm builds each network with norms of its own: `model.norm` may be `own`, or
    `frozen_bn` where these are batch norms. `model.weights=imagenet` loads the weights that timm has under this name,
    whatever they were trained on; images are normalised as these weights expect.
    """

    norms: ClassVar[tuple[BackboneNorm, ...]] = ("own", "frozen_bn")
    why_no_other_norm: ClassVar[str] = "timm builds each network with norm layers of its own"

    name: Literal["timm"] = "timm"
    model: str = Field(min_length=1, description="timm's name of the network, such as efficientnet_b0.ra_in1k")
    options: dict[str, bool | int | float | str] = Field(
        default={}, description="further arguments of timm.create_model, such as drop_path_rate"
    )

    def build(self, pretrained: bool = False) -> nn.Module:
        """See `Backbone.build`; with `pretrained` it has timm's weights."""
        with torch.random.fork_rng(devices=[]):
            reductions = [info["reduction"] for info in self._create().feature_info.info]
        missing = [s for s in STRIDES if s not in reductions]
        if missing:
            raise ConfigError(
                f"model.backbone.model = {self.model!r}: has maps at strides {', '.join(map(str, reductions))}; the "
                "pyramid needs 8, 16, 32: choose another network"
            )
        last = [len(reductions) - 1 - reductions[::-1].index(s) for s in STRIDES]
        return _Features(self._create(out_indices=last, pretrained=pretrained))

    def stages(self, body: nn.Module) -> Stages:
        """All parameters that run up to each map of timm's list, at whatever stride, and are in no stage before it."""
        network: Any = body.network
        modules = [_flat(name) for name, _ in network.named_modules()]
        outputs = [i["module"].replace(".", "_") for i in network.feature_info.info if i["reduction"] <= STRIDES[-1]]
        ends = [max((n for n, m in enumerate(modules) if f"{m}_".startswith(f"{o}_")), default=-1) for o in outputs]
        if -1 in ends:
            raise ConfigError(
                f"model.trainable_layers: timm does not say which modules of {self.model} make its stages; set it to 5"
            )
        stages: list[list[str]] = [[] for _ in ends]
        for name, _ in network.named_parameters():
            owner = modules.index(_flat(name.rpartition(".")[0]))
            stages[min(bisect.bisect_left(ends, owner), len(ends) - 1)].append(f"network.{name}")
        return [stage for stage in stages if stage]

    def exchange_norms(self, body: nn.Module, norm: BackboneNorm, frozen_eps: float | None) -> None:
        """Freeze the batch norms, with whatever timm has put into them. Raises `ConfigError` where there are none."""
        if norm != "frozen_bn":
            return
        network: Any = body.network
        if not any(isinstance(m, nn.BatchNorm2d) for m in body.modules()):
            raise ConfigError(
                f"model.norm=frozen_bn: {self.model} has no batch norms to freeze; set model.norm=own, and "
                "model.trainable_layers to freeze parts of it"
            )
        body.network = _timm().layers.freeze_batch_norm_2d(network)

    def pretrained(self, weights: Literal["imagenet", "imagenet_v1"]) -> tuple[dict[str, Tensor], str]:
        """The weights that timm has under this name."""
        if weights != "imagenet":
            raise ConfigError(
                f"model.weights={weights}: timm's weights are chosen by model.backbone.model, such as "
                "resnet50.tv_in1k; set model.weights=imagenet"
            )
        try:
            state = self.build(pretrained=True).state_dict()
        except ConfigError:
            raise
        except Exception as error:  # of the hub's client, of the network, of the file: all mean the same to the user
            raise CheckpointError(
                f"timm's weights {self.model} could not be loaded ({error}). Without internet access copy the cache of "
                "a machine that has them (HF_HOME), or set model.weights=none, or give the path of a checkpoint."
            ) from error
        return state, f"timm's weights {self.model}"

    def _create(self, **options: Any) -> Any:
        """timm's network of maps. Raises `ConfigError` where there is no timm, no such network, or no maps of it."""
        timm = _timm()
        if not timm.is_model(self.model):
            near = difflib.get_close_matches(self.model, timm.list_models() + timm.list_pretrained(), n=3)
            hint = f"; near are {', '.join(near)}" if near else ""
            raise ConfigError(f"model.backbone.model = {self.model!r}: unknown to timm {timm.__version__}{hint}")
        try:
            return timm.create_model(self.model, features_only=True, **self.options, **options)
        except (RuntimeError, AttributeError, AssertionError, TypeError, ValueError) as error:
            if options.get("pretrained"):
                raise
            raise ConfigError(
                f"model.backbone.model = {self.model!r}: timm gives no maps of it with features_only ({error}); choose "
                "another network"
            ) from error

    def __str__(self) -> str:
        return f"timm {self.model}"


class _Features(nn.Module):
    """timm's network of maps, for images that are normalised with ImageNet's mean and deviation."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        wanted = network.pretrained_cfg
        self.as_it_is = (tuple(wanted["mean"]), tuple(wanted["std"])) == (MEAN, STD)
        ours, (mean, std) = torch.tensor([MEAN, STD]), torch.tensor([wanted["mean"], wanted["std"]])
        self.register_buffer("scale", (ours[1] / std).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((ours[0] - mean) / std).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images `[B, 3, H, W]` to the maps."""
        maps = self.network(x if self.as_it_is else x * self.scale + self.shift)
        if getattr(self.network, "output_fmt", "NCHW") == "NHWC":
            return [m.permute(0, 3, 1, 2) for m in maps]
        return list(maps)


def _timm() -> ModuleType:
    try:
        import timm
        import timm.layers
    except ImportError as error:
        raise ConfigError(
            f"model.backbone.name = timm needs the package timm ({error}): install mgdet with its extra, mgdet[timm]"
        ) from error
    return timm  # type: ignore[no-any-return]  # timm is untyped


def _flat(name: str) -> str:
    """A module's name: timm puts some networks below `model` or `body`, and writes `_` for `.` in others."""
    return re.sub(r"^(model|body)\.", "", name).replace(".", "_")
