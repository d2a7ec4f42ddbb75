"""Images unlike any training image, to measure how a bundle behaves far from its training data."""

from __future__ import annotations

import numpy as np

from glowserve.images import UInt8Array

_MAX_IMAGES = 32


def out_of_distribution_images(held_out: UInt8Array, most: int = _MAX_IMAGES) -> dict[str, UInt8Array]:
    """At most 32 images of each kind, uint8 [N, H, W, C], by the name of the kind.

    Args:
        held_out: images to invert, uint8 [N, H, W, C].
        most: the number of images of each kind, if fewer than 32.
    """
    _, height, width, channels = held_out.shape
    most = min(most, _MAX_IMAGES)
    shape = (most, height, width, channels)
    greys = np.linspace(0, 255, most).round().astype(np.uint8)
    return {
        "noise": np.random.Generator(np.random.Philox(0)).integers(0, 256, shape, dtype=np.uint8),
        "constant": np.broadcast_to(greys[:, None, None, None], shape).copy(),
        "inverted": 255 - held_out[:most],
        "checkerboard": _checkerboards(height, width, channels)[:most],
    }


def _checkerboards(height: int, width: int, channels: int) -> UInt8Array:
    """Checkerboards with squares of 1, 2, 4, ... pixels, each with a black and with a white first square."""
    rows, columns = np.indices((height, width))
    boards = []
    for size in (2**k for k in range(height.bit_length() - 1)):
        white = (rows // size + columns // size) % 2
        boards += [white * 255, (1 - white) * 255]
    return np.repeat(np.stack(boards).astype(np.uint8)[..., None], channels, axis=3)
