"""The layers of Glow: bijectors with log-determinants."""

from glowserve_training.layers.actnorm import ActNorm
from glowserve_training.layers.base import Bijector
from glowserve_training.layers.conv1x1 import InvertibleConv1x1, LUConv1x1, OrthogonalConv1x1, PlainConv1x1
from glowserve_training.layers.coupling import Coupling
from glowserve_training.layers.level import Level
from glowserve_training.layers.masks import ChannelMask, CheckerboardMask, Mask
from glowserve_training.layers.networks import CouplingNetwork, HiddenConv2d, ZeroConv2d
from glowserve_training.layers.prior import Split, TopPrior
from glowserve_training.layers.qlu import QLUConv1x1
from glowserve_training.layers.splines import Spline
from glowserve_training.layers.squeeze import Squeeze
from glowserve_training.layers.step import CONV1X1_CLASSES, FlowStep
from glowserve_training.layers.transforms import (
    Additive,
    Affine,
    AffineSpline,
    DoubleSigmoid,
    SigmoidAffine,
    TanhAffine,
    Transform,
)

__all__ = [
    "CONV1X1_CLASSES",
    "ActNorm",
    "Additive",
    "Affine",
    "AffineSpline",
    "Bijector",
    "ChannelMask",
    "CheckerboardMask",
    "Coupling",
    "CouplingNetwork",
    "DoubleSigmoid",
    "FlowStep",
    "HiddenConv2d",
    "InvertibleConv1x1",
    "LUConv1x1",
    "Level",
    "Mask",
    "OrthogonalConv1x1",
    "PlainConv1x1",
    "QLUConv1x1",
    "SigmoidAffine",
    "Spline",
    "Split",
    "Squeeze",
    "TanhAffine",
    "TopPrior",
    "Transform",
    "ZeroConv2d",
]
