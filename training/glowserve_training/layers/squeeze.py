"""Squeeze (Dinh et al. 2017, section 3.6): moves space into channels."""

from __future__ import annotations

from torch import Tensor

from glowserve_training.layers.base import Bijector


class Squeeze(Bijector):
    """Turns each 2x2 block of positions into one position with four times the channels.

    Channels are ordered as by ONNX's SpaceToDepth, unlike `torch.pixel_unshuffle`: channel (2 * row + column) * C + c
    of the result is channel c at (row, column) of the block. H and W must be even. The results are in channels_last
    memory format, in which convolutions are fastest.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, H, W] to [N, 4C, H/2, W/2]; the log-determinant is 0."""
        n, c, h, w = x.shape
        blocks = x.permute(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2, c)
        y = blocks.transpose(2, 3).reshape(n, h // 2, w // 2, 4 * c)
        return y.permute(0, 3, 1, 2), x.new_zeros(n)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 4C, H/2, W/2] to [N, C, H, W]; the log-determinant is 0."""
        n, c4, h2, w2 = y.shape
        blocks = y.permute(0, 2, 3, 1).reshape(n, h2, w2, 2, 2, c4 // 4)
        x = blocks.transpose(2, 3).reshape(n, 2 * h2, 2 * w2, c4 // 4)
        return x.permute(0, 3, 1, 2), y.new_zeros(n)
