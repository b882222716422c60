"""Adam, and with decoupled weight decay."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field
from torch import optim

from mgdet.training.optimizers.base import Optimizer, ParameterGroups

Beta: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


class _Adams(Optimizer):
    """The keys that both have."""

    lr: float = Field(default=5e-4, gt=0, le=1e30, description="learning rate for this global batch size")
    betas: tuple[Beta, Beta] = Field(
        default=(0.9, 0.999), description="decay of the running means of gradients and of their squares"
    )
    decay_norm_and_bias: bool = Field(default=False, description="false: no weight decay on biases and norm layers")


class AdamW(_Adams):
    """AdamW (Loshchilov and Hutter, ICLR 2019); learns faster from random initialisation on small data."""

    name: Literal["adamw"] = "adamw"
    weight_decay: float = Field(
        default=0.05, ge=0, le=1e6, description="share by which weights shrink in a step, times lr"
    )

    def __call__(self, groups: ParameterGroups) -> optim.Optimizer:
        """See `Optimizer`."""
        return optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=True)


class Adam(_Adams):
    """Adam (Kingma and Ba, ICLR 2015); its weight decay is added to the gradient before the moments are taken."""

    name: Literal["adam"] = "adam"
    weight_decay: float = Field(default=0.0, ge=0, le=1e6, description="factor of the weights in their gradient")

    def __call__(self, groups: ParameterGroups) -> optim.Optimizer:
        """See `Optimizer`."""
        return optim.Adam(groups, lr=self.lr, betas=self.betas, fused=True)
