"""What every backbone is: a frozen set of hyperparameters that can be called for a network."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias

from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from mgdet.config_base import NamedConfig
from mgdet.errors import ConfigError
from mgdet.models.download import fetch
from mgdet.models.norm import exchange_batch_norms

STRIDES = (8, 16, 32)
"""Of the maps that the pyramid takes."""
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet's RGB values between 0 and 1, with which images are normalised."""

ALL = 5
"""`trainable_layers` when everything trains, whatever the number of stages."""

BackboneNorm = Literal["own", "none", "bn", "frozen_bn", "gn", "ln"]
Stages: TypeAlias = Sequence[Sequence[str]]
"""Names of modules, in the order in which they run: the stem first, the deepest stage last."""


class Backbone(NamedConfig):
    """A classification network without its classifier, made to give maps at strides 8, 16 and 32.

    Subclasses have a `name`, or several, by which the configuration tells them apart; a backbone without further keys
    is written as that name alone. What `model.norm` may be is theirs to say: `norms`, the own one first.
    """

    norms: ClassVar[tuple[BackboneNorm, ...]] = ("bn", "frozen_bn", "gn")
    why_no_other_norm: ClassVar[str] = "only a norm of the channels of a map can take the place of its batch norms"

    def __call__(
        self, norm: BackboneNorm = "own", trainable_layers: int = ALL, frozen_eps: float | None = None
    ) -> nn.Module:
        """The network with random weights: images `[B, 3, H, W]` to a list of three maps `[B, C, H/s, W/s]`.

        Args:
            norm: one of `norms`.
            trainable_layers: stages that train, counted from the last; the others get no gradient. 5: all train.
            frozen_eps: epsilon of frozen batch norms; by default that of the batch norms that they replace.

        Raises:
            ConfigError: it cannot be built so.
        """
        norm = self.resolved_norm(norm)
        body = self.build()
        self.exchange_norms(body, norm, frozen_eps)
        if trainable_layers == ALL:
            return body
        stages = self.stages(body)
        frozen = tuple(f"{name}." for stage in stages[: max(0, len(stages) - trainable_layers)] for name in stage)
        for name, parameter in body.named_parameters():
            if f"{name}.".startswith(frozen):
                parameter.requires_grad_(False)
        return body

    @abstractmethod
    def build(self) -> nn.Module:
        """The network with random weights, its own norms, and everything trainable."""

    @abstractmethod
    def stages(self, body: nn.Module) -> Stages:
        """What `trainable_layers` counts, five where there are five; a parameter that is in none always trains."""

    def pretrained(self, weights: Literal["imagenet", "imagenet_v1"]) -> tuple[dict[str, Tensor], str]:
        """The state dict of `build()` after training on ImageNet, and what it is called.

        Raises `ConfigError` where there is none, `CheckpointError` where it cannot be downloaded.
        """
        raise ConfigError(
            f"model.weights={weights}: there are none of the backbone {self}; use none or the path of a checkpoint"
        )

    def exchange_norms(self, body: nn.Module, norm: BackboneNorm, frozen_eps: float | None) -> None:
        """Put `norm`, one of `norms`, in the place of the own norm layers of `body`."""
        if norm in ("bn", "frozen_bn", "gn"):
            exchange_batch_norms(body, norm, frozen_eps)

    def resolved_norm(self, norm: BackboneNorm) -> BackboneNorm:
        """`norm`, or for `own` the norm with which this network was published. Raises `ConfigError` for others."""
        norm = self.norms[0] if norm == "own" else norm
        if norm not in self.norms:
            allowed = " or ".join(f"model.norm={n}" for n in self.norms)
            raise ConfigError(f"{norm} does not go with the backbone {self}: {self.why_no_other_norm}; set {allowed}")
        return norm


class TorchvisionBackbone(Backbone):
    """A backbone that is a classification network of torchvision of the same name, with its parameter names.

    A subclass names the children of that network that are not needed, and its five stages.
    """

    unused: ClassVar[tuple[str, ...]] = ("avgpool", "classifier")

    def build(self) -> nn.Module:
        """See `Backbone.build`."""
        network = self.network()
        stages = self.stages(network)
        return Staged(network, self.unused, stages, self.maps(stages), self.output_norms(network))

    def network(self) -> nn.Module:
        """torchvision's, with random weights."""
        return get_model(self.name, weights=None)  # type: ignore[no-any-return]  # torchvision is untyped

    def maps(self, stages: Stages) -> Sequence[str]:
        """The modules whose outputs are the maps: the last ones of the last three stages."""
        return [stage[-1] for stage in stages[-3:]]

    def output_norms(self, network: nn.Module) -> Sequence[nn.Module]:
        """Layers for the three maps that only a detector has; none by default."""
        return ()

    def pretrained(self, weights: Literal["imagenet", "imagenet_v1"]) -> tuple[dict[str, Tensor], str]:
        """torchvision's newest weights, or its first ones."""
        found = get_model_weights(self.name)
        enum = found.DEFAULT if weights == "imagenet" else found["IMAGENET1K_V1"]
        state = {k: v for k, v in fetch(enum).items() if k.split(".")[0] not in self.unused}
        return state, f"ImageNet weights {enum}"


class Staged(nn.Module):
    """The children of `network` but the `unused` ones, under their names, run in the order of `stages`.

    Gives the outputs of the modules `maps`, each through its layer of `output_norms` if there are any.
    """

    def __init__(
        self,
        network: nn.Module,
        unused: Sequence[str],
        stages: Stages,
        maps: Sequence[str],
        output_norms: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        for name, child in network.named_children():
            if name not in unused:
                self.add_module(name, child)
        self.output_norms = nn.ModuleList(output_norms)
        self._order = [name for stage in stages for name in stage]
        self._maps = tuple(maps)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images `[B, 3, H, W]` to the maps."""
        maps = []
        for name in self._order:
            x = self.get_submodule(name)(x)
            if name in self._maps:
                maps.append(x)
        if not self.output_norms:
            return maps
        return [norm(m) for norm, m in zip(self.output_norms, maps, strict=True)]


def split(sequence: str, starts: Sequence[int], length: int) -> Stages:
    """Stages of a `nn.Sequential` of `length` modules, given the number of the first module of each."""
    return [[f"{sequence}.{i}" for i in range(*ends)] for ends in zip(starts, [*starts[1:], length], strict=True)]
