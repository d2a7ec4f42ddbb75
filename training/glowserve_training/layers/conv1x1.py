"""The invertible 1x1 convolution (Kingma and Dhariwal 2018, section 3.2), in three parametrizations.

Each is initialized with a random orthogonal matrix W [C, C] and maps y[:, h, w] = W x[:, h, w], so that
log|det dy/dx| = H * W * log|det W|. The default parametrization is in `layers.qlu`.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from glowserve_training.layers.base import Bijector
from glowserve_training.layers.bounds import bounded, unbounded

# |log|s|| stays below this, so that each |s| lies within 1/148 to 148. Initial values of log|s|, from the LU
# decomposition, lie well inside: within -1.9 to 3.2 in 400 draws for each C from 2 to 192.
LOG_S_BOUND = 5.0


class InvertibleConv1x1(Bijector):
    """A 1x1 convolution with an invertible matrix W; subclasses define its parametrization."""

    @abc.abstractmethod
    def weight(self) -> Tensor:
        """W, [C, C]."""

    @abc.abstractmethod
    def log_abs_det(self) -> Tensor:
        """log|det W|, a scalar."""

    @abc.abstractmethod
    def apply_inverse(self, y: Tensor) -> Tensor:
        """W^-1 y, [C, M], for y [C, M]."""

    @staticmethod
    def stacked(layers: Sequence[InvertibleConv1x1]) -> tuple[Tensor, Tensor]:
        """W [K, C, C] and log|det W| [K] of K layers of the same class and C."""
        return torch.stack([layer.weight() for layer in layers]), torch.stack(
            [layer.log_abs_det() for layer in layers]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijector`."""
        return F.conv2d(x, self.weight()[:, :, None, None]), self._log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijector`."""
        n, c, h, w = y.shape
        columns = y.transpose(0, 1).reshape(c, n * h * w)
        x = self.apply_inverse(columns).reshape(c, n, h, w).transpose(0, 1)
        return x.contiguous(), -self._log_det(y)

    def _log_det(self, x: Tensor) -> Tensor:
        return (x.shape[2] * x.shape[3] * self.log_abs_det()).expand(x.shape[0])


class PlainConv1x1(InvertibleConv1x1):
    """W itself is the parameter; training can make it singular.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(random_orthogonal(channels))

    def weight(self) -> Tensor:
        """See `InvertibleConv1x1`."""
        return self.matrix

    def log_abs_det(self) -> Tensor:
        """See `InvertibleConv1x1`."""
        log_abs_det: Tensor = torch.linalg.slogdet(self.matrix).logabsdet
        return log_abs_det

    def apply_inverse(self, y: Tensor) -> Tensor:
        """See `InvertibleConv1x1`; inverts W in every call."""
        x: Tensor = torch.linalg.inv(self.matrix) @ y
        return x


class LUConv1x1(InvertibleConv1x1):
    """W = P L (U + diag(s)) with log|s| = B tanh(t / B): det W cannot reach zero.

    P, a permutation, and the signs of s are fixed at initialization; L (unit lower triangular), U (strictly upper
    triangular) and t are learned; B is `LOG_S_BOUND`. This is equation 10 of the paper with the bound added.

    Args:
        channels: C.
    """

    permutation: Tensor
    sign_s: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        permutation, lower, upper = torch.linalg.lu(random_orthogonal(channels).double())
        s = upper.diagonal()
        self.register_buffer("permutation", permutation.to(torch.get_default_dtype()))
        self.register_buffer("sign_s", s.sign().to(torch.get_default_dtype()))
        self.lower = nn.Parameter(lower.tril(-1).to(torch.get_default_dtype()))
        self.upper = nn.Parameter(upper.triu(1).to(torch.get_default_dtype()))
        t = unbounded(s.abs().log(), LOG_S_BOUND)
        self.unbounded_log_s = nn.Parameter(t.to(torch.get_default_dtype()))

    def weight(self) -> Tensor:
        """See `InvertibleConv1x1`."""
        lower, upper = self._triangles()
        return self.permutation @ lower @ upper

    def log_abs_det(self) -> Tensor:
        """See `InvertibleConv1x1`."""
        return bounded(self.unbounded_log_s, LOG_S_BOUND).sum()

    @staticmethod
    def stacked(layers: Sequence[InvertibleConv1x1]) -> tuple[Tensor, Tensor]:
        """See `InvertibleConv1x1`; batched, since for one small matrix the overhead of the calls dominates."""
        names = ("permutation", "lower", "upper", "sign_s", "unbounded_log_s")
        parts = (torch.stack([getattr(layer, name) for layer in layers]) for name in names)
        permutation, lower, upper, sign_s, unbounded_log_s = parts
        log_s = bounded(unbounded_log_s, LOG_S_BOUND)
        lower, upper = _triangles(lower, upper, sign_s * log_s.exp())
        return permutation @ lower @ upper, log_s.sum(1)

    def apply_inverse(self, y: Tensor) -> Tensor:
        """See `InvertibleConv1x1`; two triangular solves."""
        lower, upper = self._triangles()
        half = torch.linalg.solve_triangular(lower, self.permutation.T @ y, upper=False, unitriangular=True)
        x: Tensor = torch.linalg.solve_triangular(upper, half, upper=True)
        return x

    def _triangles(self) -> tuple[Tensor, Tensor]:
        return _triangles(
            self.lower, self.upper, self.sign_s * bounded(self.unbounded_log_s, LOG_S_BOUND).exp()
        )


def _triangles(lower: Tensor, upper: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """L with ones on its diagonal and U with s on its diagonal, each [..., C, C]."""
    identity = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    return lower.tril(-1) + identity, upper.triu(1) + torch.diag_embed(s)


class OrthogonalConv1x1(InvertibleConv1x1):
    """W = exp(A) Q with A skew-symmetric: condition number 1, inverse W^T, log-determinant 0.

    A is learned, starting at 0; Q is a fixed random orthogonal matrix. Only actnorm scales, channel by channel.

    Args:
        channels: C.
    """

    matrix: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(random_orthogonal(channels))
        orthogonal(self, "matrix", orthogonal_map="matrix_exp")

    def weight(self) -> Tensor:
        """See `InvertibleConv1x1`."""
        return self.matrix

    def log_abs_det(self) -> Tensor:
        """See `InvertibleConv1x1`."""
        return self.parametrizations.matrix.original.new_zeros(())  # type: ignore[union-attr,operator]

    def apply_inverse(self, y: Tensor) -> Tensor:
        """See `InvertibleConv1x1`."""
        return self.matrix.T @ y


def random_orthogonal(channels: int) -> Tensor:
    """Q of the QR decomposition of a Gaussian matrix, [C, C]."""
    q: Tensor = torch.linalg.qr(torch.randn(channels, channels)).Q
    return q
