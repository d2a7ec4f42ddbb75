"""Images unlike any that a model knows, to see what becomes of them."""

from __future__ import annotations

import numpy as np

from glowserve.images import UInt8Array

_MOST = 32


def unseen_images(held_out: UInt8Array) -> dict[str, UInt8Array]:
    """Some of each kind, uint8 [N, H, W, C], at most 32.

    Args:
        held_out: images to invert, uint8 [N, H, W, C].
    """
    _, height, width, channels = held_out.shape
    shape = (_MOST, height, width, channels)
    greys = np.linspace(0, 255, _MOST).round().astype(np.uint8)
    return {
        "noise": np.random.Generator(np.random.Philox(0)).integers(0, 256, shape, dtype=np.uint8),
        "constant": np.broadcast_to(greys[:, None, None, None], shape).copy(),
        "inverted": 255 - held_out[:_MOST],
        "checkerboard": _checkerboards(height, width, channels),
    }


def _checkerboards(height: int, width: int, channels: int) -> UInt8Array:
    """Black and white squares of 1, 2, 4 ... pixels, beginning with either."""
    rows, columns = np.indices((height, width))
    boards = []
    for size in (2**k for k in range(height.bit_length() - 1)):
        white = (rows // size + columns // size) % 2
        boards += [white * 255, (1 - white) * 255]
    return np.repeat(np.stack(boards).astype(np.uint8)[..., None], channels, axis=3)
