"""Couplings as data: a mask, a network and a transform, combined freely.

Each knows how it is folded from its class in training, its float64 reference in PyTorch, and its nodes in both graphs.
"""

from glowserve_export.couplings.coupling import FoldedCoupling, add_log_det, add_minus_log_scales
from glowserve_export.couplings.masks import HALVES, Checkerboard, Halves, Mask
from glowserve_export.couplings.networks import FoldedNetwork
from glowserve_export.couplings.splines import AffineSpline
from glowserve_export.couplings.transforms import (
    DoubleSigmoidScale,
    ExpScale,
    InverseSigmoidScale,
    Shift,
    SigmoidScale,
    TanhScale,
    Transform,
)

__all__ = [
    "HALVES",
    "AffineSpline",
    "Checkerboard",
    "DoubleSigmoidScale",
    "ExpScale",
    "FoldedCoupling",
    "FoldedNetwork",
    "Halves",
    "InverseSigmoidScale",
    "Mask",
    "Shift",
    "SigmoidScale",
    "TanhScale",
    "Transform",
    "add_log_det",
    "add_minus_log_scales",
]
