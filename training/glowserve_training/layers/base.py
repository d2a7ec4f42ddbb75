"""The interface of all layers of the flow.

Shapes, here and in all layers: N images in the batch, C channels, H rows, W columns; x and y are [N, C, H, W],
a log-determinant is [N], in nats.
"""

from __future__ import annotations

import abc

from torch import Tensor, nn


class Bijector(nn.Module, abc.ABC):
    """An invertible map whose Jacobian determinant is cheap to compute.

    `inverse(forward(x)[0])[0]` is x, and the log-determinant of one is the negative of the other's.
    """

    @abc.abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From pixels towards latents: y, and log|det dy/dx| of each image, [N]."""

    @abc.abstractmethod
    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """From latents towards pixels: x, and log|det dx/dy| of each image, [N]."""
