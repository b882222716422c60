"""What every neck is: a frozen set of hyperparameters that builds the layers from a backbone's maps to a pyramid."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import nn

from mgdet.config_base import NamedConfig
from mgdet.models.norm import Norm, norm_layer


class Neck(NamedConfig):
    """Makes maps of equal width, at strides 8, 16, 32 and so on, of a backbone's maps at strides 8, 16 and 32.

    Subclasses have a `name`, or several; a neck without further keys is written as that name alone.
    """

    @property
    def inputs(self) -> int:
        """How many of the backbone's three maps it takes, from stride 8 on."""
        return 3

    @property
    @abstractmethod
    def strides(self) -> tuple[int, ...]:
        """Of its maps, the finest first."""

    @abstractmethod
    def build(self, widths: Sequence[int], channels: int, p6_from: str, norm: Norm) -> nn.Module:
        """A module from the backbone's maps by name to the pyramid's by name, both the finest first.

        Args:
            widths: channels of the backbone's three maps.
            channels: of the pyramid's maps.
            p6_from: `c5` or `p5`, for a neck that makes P6 from either.
            norm: of its convolutions.
        """


def block(inputs: int, outputs: int, norm: Norm, side: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution with a bias, the norm and ReLU, as in the official code of Mutual Guidance."""
    layer = norm_layer(norm)
    convolution = nn.Conv2d(inputs, outputs, side, stride=stride, padding=side // 2)
    return nn.Sequential(convolution, *([layer(outputs)] if layer else []), nn.ReLU())
