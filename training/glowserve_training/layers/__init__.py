"""The layers of Glow, each a bijector that knows its log-determinant."""

from glowserve_training.layers.actnorm import ActNorm
from glowserve_training.layers.base import Bijector
from glowserve_training.layers.conv1x1 import (
    PARAMETRIZATIONS,
    InvertibleConv1x1,
    LUConv1x1,
    OrthogonalConv1x1,
    PlainConv1x1,
    invertible_conv1x1,
)
from glowserve_training.layers.coupling import (
    COUPLINGS,
    AdditiveCoupling,
    AffineCoupling,
    Coupling,
    HiddenConv2d,
    ZeroConv2d,
)
from glowserve_training.layers.prior import Split, TopPrior
from glowserve_training.layers.squeeze import Squeeze

__all__ = [
    "COUPLINGS",
    "PARAMETRIZATIONS",
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "Bijector",
    "Coupling",
    "HiddenConv2d",
    "InvertibleConv1x1",
    "LUConv1x1",
    "OrthogonalConv1x1",
    "PlainConv1x1",
    "Split",
    "Squeeze",
    "TopPrior",
    "ZeroConv2d",
    "invertible_conv1x1",
]
