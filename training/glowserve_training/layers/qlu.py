"""The default parametrization of the 1x1 convolution: it starts orthogonal, and its condition number has a bound."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from glowserve_training.layers.bounds import bounded
from glowserve_training.layers.conv1x1 import InvertibleConv1x1, random_orthogonal

NORM_BOUND = 0.75
"""b: L and U differ from I by less, in the spectral norm."""

LOG_S_BOUND = 2.0
"""B: |log s| stays below."""

CONDITION_BOUND = ((1 + NORM_BOUND) / (1 - NORM_BOUND)) ** 2 * math.exp(2 * LOG_S_BOUND)
"""The condition number of W stays below, in exact arithmetic: 2,675."""


class QLUConv1x1(InvertibleConv1x1):
    """W = Q L diag(s) U, with ||L - I|| and ||U - I|| < b and |log s| < B.

    Q is a fixed random orthogonal matrix. L is unit lower triangular, U unit upper triangular, and both, like s, start
    at the identity, so that one step of an optimizer turns W as little as a step of W itself would. The factors of an
    LU decomposition of Q start with condition numbers of 9 to 320, which magnify every step.

    Each of L and U has a condition number below (1 + b) / (1 - b), and diag(s) below exp(2 B). So W's is below
    `CONDITION_BOUND`, whatever an optimizer does.

    Args:
        channels: C.
    """

    rotation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("rotation", random_orthogonal(channels))
        self.lower = nn.Parameter(torch.zeros(channels, channels))
        self.upper = nn.Parameter(torch.zeros(channels, channels))
        self.unbounded_log_s = nn.Parameter(torch.zeros(channels))

    def weight(self) -> Tensor:
        """See `InvertibleConv1x1`."""
        return self.stacked([self])[0][0]

    def log_abs_det(self) -> Tensor:
        """See `InvertibleConv1x1`."""
        return bounded(self.unbounded_log_s, LOG_S_BOUND).sum()

    @staticmethod
    def stacked(layers: Sequence[InvertibleConv1x1]) -> tuple[Tensor, Tensor]:
        """See `InvertibleConv1x1`; batched, since for one small matrix the overhead of the calls dominates."""
        names = ("rotation", "lower", "upper", "unbounded_log_s")
        parts = (torch.stack([getattr(layer, name) for layer in layers]) for name in names)
        rotation, lower, upper, unbounded_log_s = parts
        log_s = bounded(unbounded_log_s, LOG_S_BOUND)
        lower, upper = _triangles(lower, upper)
        return rotation @ lower @ (log_s.exp()[:, :, None] * upper), log_s.sum(1)

    def apply_inverse(self, y: Tensor) -> Tensor:
        """See `InvertibleConv1x1`; three solves: Q is rounded to float32, and its transpose inverts it to 1e-7 only."""
        lower, upper = _triangles(self.lower, self.upper)
        half = torch.linalg.solve(self.rotation, y)
        half = torch.linalg.solve_triangular(lower, half, upper=False, unitriangular=True)
        half = half * (-bounded(self.unbounded_log_s, LOG_S_BOUND)).exp()[:, None]
        x: Tensor = torch.linalg.solve_triangular(upper, half, upper=True, unitriangular=True)
        return x


def _triangles(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """L and U, each [..., C, C]."""
    identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    return identity + _bounded_norm(lower.tril(-1)), identity + _bounded_norm(upper.triu(1))


def _bounded_norm(n: Tensor) -> Tensor:
    """N [..., C, C] scaled so that its spectral norm is below b; hardly changed while its norm is small against b.

    The factor is (1 + (||N|| / b)^8)^(-1/8) with the Schatten norm of order 8, which is no less than the spectral norm,
    and at most C^(1/8) times as large. Its eighth power, ||(N' N)^2||^2 in the Frobenius norm, is smooth at N = 0 too.

    The gradient, 8 N (N' N)^3, is written out: autograd would multiply twice as many matrices. It has no second
    derivative.
    """
    # If an entry exceeds b, N is divided by the largest first, so that no power overflows. The result does not depend
    # on this factor.
    size = n.detach().abs().amax((-2, -1), keepdim=True).div(NORM_BOUND).clamp(min=1)
    small = n / (NORM_BOUND * size)
    with torch.no_grad():
        gram = small.mT @ small
        square = gram @ gram
        factor = (size**-8 + square.square().sum((-2, -1), keepdim=True)) ** -0.125
        slope = small @ (gram @ square) * factor**9
    along = (small * slope).sum((-2, -1), keepdim=True)
    return small * (
        NORM_BOUND * (factor - (along - along.detach()))
    )  # adds 0, whose gradient is the factor's
