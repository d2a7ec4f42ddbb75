"""How complex images are without any model: the size of a lossless WebP file."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array, to_pil

# More effort costs time, and makes few files smaller.
_QUALITY, _METHOD = 50, 3


def complexity_bits_per_dim(images: UInt8Array) -> npt.NDArray[np.float64]:
    """The bits of each image's file per value, [N], of uint8 [N, H, W, C]."""
    return np.array([8 * _size(image) / image.size for image in images], np.float64)


def _size(image: UInt8Array) -> int:
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "WEBP", lossless=True, exact=True, quality=_QUALITY, method=_METHOD)
    return buffer.tell()
