"""The layers of Glow: bijectors with log-determinants."""

from glowserve_training.layers.actnorm import ActNorm
from glowserve_training.layers.base import Bijector
from glowserve_training.layers.conv1x1 import (
    CONV1X1_CLASSES,
    InvertibleConv1x1,
    LUConv1x1,
    OrthogonalConv1x1,
    PlainConv1x1,
    invertible_conv1x1,
)
from glowserve_training.layers.coupling import (
    COUPLING_CLASSES,
    AdditiveCoupling,
    AffineCoupling,
    Coupling,
    HiddenConv2d,
    ZeroConv2d,
)
from glowserve_training.layers.level import Level
from glowserve_training.layers.prior import Split, TopPrior
from glowserve_training.layers.squeeze import Squeeze
from glowserve_training.layers.step import FlowStep

__all__ = [
    "CONV1X1_CLASSES",
    "COUPLING_CLASSES",
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "Bijector",
    "Coupling",
    "FlowStep",
    "HiddenConv2d",
    "InvertibleConv1x1",
    "LUConv1x1",
    "Level",
    "OrthogonalConv1x1",
    "PlainConv1x1",
    "Split",
    "Squeeze",
    "TopPrior",
    "ZeroConv2d",
    "invertible_conv1x1",
]
