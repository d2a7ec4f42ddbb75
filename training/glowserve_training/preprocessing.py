"""From bins of pixel values, and noise within them, to the continuous values that the flow models.

A byte falls into one of 2^n_bits bins q. With noise v in [0, 1), s = (q + v) / 2^n_bits lies in [0, 1), and the
preprocessing maps s to the flow's input.
"""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor, nn

ALPHA = 1e-5
"""s is moved this far away from 0 and 1, whose logits are infinite."""


class Preprocessing(nn.Module, abc.ABC):
    """Maps s to the flow's input, value by value.

    Args:
        n_bits: bits of each pixel value that the model sees.
    """

    def __init__(self, n_bits: int) -> None:
        super().__init__()
        self.bins = 2**n_bits

    @abc.abstractmethod
    def forward(self, bins: Tensor, noise: Tensor, complement: Tensor) -> tuple[Tensor, Tensor]:
        """The flow's input, and the log-determinant of the map of s, [N].

        Args:
            bins: q, of the noise's dtype, [N, C, H, W].
            noise: v, [N, C, H, W].
            complement: 1 - v, with the digits that the difference of two numbers near 1 would lose, [N, C, H, W].
        """

    @abc.abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        """The pixels q + v of the flow's input."""


class Centre(Preprocessing):
    """y = s - 0.5."""

    def forward(self, bins: Tensor, noise: Tensor, complement: Tensor) -> tuple[Tensor, Tensor]:
        """See `Preprocessing`."""
        return (bins + noise) / self.bins - 0.5, noise.new_zeros(len(noise))

    def inverse(self, y: Tensor) -> Tensor:
        """See `Preprocessing`."""
        pixels: Tensor = (y + 0.5) * self.bins
        return pixels


class Logit(Preprocessing):
    """y = logit(alpha + (1 - 2 alpha) s) (Dinh et al. 2017, section 4.1): spreads the values near black and white.

    log(1 - s) is computed of what is missing to white, (2^n_bits - 1 - q) + (1 - v), which float32 knows exactly.
    """

    def forward(self, bins: Tensor, noise: Tensor, complement: Tensor) -> tuple[Tensor, Tensor]:
        """See `Preprocessing`."""
        log_s = self._log(bins + noise)
        log_rest = self._log((self.bins - 1 - bins) + complement)
        log_det = noise[0].numel() * math.log1p(-2 * ALPHA) - (log_s + log_rest).sum((1, 2, 3))
        return log_s - log_rest, log_det

    def inverse(self, y: Tensor) -> Tensor:
        """See `Preprocessing`."""
        return (torch.sigmoid(y) - ALPHA) * (self.bins / (1 - 2 * ALPHA))

    def _log(self, pixels: Tensor) -> Tensor:
        """log(alpha + (1 - 2 alpha) pixels / bins)."""
        return (pixels * ((1 - 2 * ALPHA) / self.bins) + ALPHA).log()


PREPROCESSING_CLASSES: dict[str, type[Centre | Logit]] = {"centre": Centre, "logit": Logit}
"""By `GlowConfig.preprocessing`."""
