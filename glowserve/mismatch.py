"""Which values do not come back after encoding and decoding: the one place that knows the rule.

Shapes: N images, H W C.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array

Int64Array = npt.NDArray[np.int64]


class Decoded(Protocol):
    """Images that a model made of latents."""

    @property
    def image(self) -> UInt8Array:
        """uint8 [N, H, W, C]."""

    @property
    def pixels(self) -> npt.NDArray[np.floating]:
        """Before rounding and clipping, in bins, [N, H, W, C]."""


def mismatched_values(images: UInt8Array, decoded: Decoded, n_bits: int) -> Int64Array:
    """How many values of each image are in another bin after encoding and decoding, [N].

    Args:
        images: uint8 [N, H, W, C].
        decoded: what the model made of their latents.
        n_bits: the model's bits per value; an image has 2^n_bits bins.
    """
    shift = 8 - n_bits
    # A pixel that is not finite is a mismatch, whatever byte it is rounded to.
    wrong = ((images >> shift) != (decoded.image >> shift)) | ~np.isfinite(decoded.pixels)
    counts: Int64Array = wrong.sum(axis=(1, 2, 3))
    return counts
