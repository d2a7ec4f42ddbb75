"""Arranges images in a grid, to look at many of them at once."""

from __future__ import annotations

import numpy as np
from PIL import Image

from glowserve.images import UInt8Array, to_pil


def grid(images: UInt8Array, columns: int | None = None, *, scale: int = 1) -> Image.Image:
    """Arranges images in a grid, row by row, with a white line of one pixel around each.

    Args:
        images: uint8 [N, H, W, C], N at least 1.
        columns: images per row; by default as many as make the grid nearly square.
        scale: the factor, a whole number, by which the grid is enlarged.
    """
    _, height, width, channels = images.shape
    rows, columns = grid_shape(images, columns)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = 1 + (i // columns) * (height + 1), 1 + (i % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = image
    picture = to_pil(canvas)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def grid_shape(images: UInt8Array, columns: int | None = None) -> tuple[int, int]:
    """The rows and columns of a grid of images, [N, H, W, C], see `grid`."""
    n, height, width, _ = images.shape
    columns = min(n, columns or int(np.ceil(np.sqrt(n * ((height + 1) / (width + 1))))))
    return -(-n // columns), columns
