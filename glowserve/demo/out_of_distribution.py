"""Out-of-distribution images for a model of handwritten digits, of the same size."""

from __future__ import annotations

import string

import numpy as np
from glowserve_export.corruptions import blurred, half_contrast
from PIL import Image, ImageDraw, ImageFont

from glowserve.images import Preparation, UInt8Array, prepare

# A capital in Pillow's own font fills about as much of a canvas of this size as a digit fills of its image.
_CANVAS_PIXELS = 64


def out_of_distribution_images(digits: UInt8Array) -> dict[str, UInt8Array]:
    """Images of each kind, uint8 [N, H, W, 1], by the name of the kind.

    Args:
        digits: uint8 [N, H, W, 1].
    """
    rng = np.random.default_rng(0)
    return {
        "letters": letters(*digits.shape[1:3]),
        "blurred digits": blurred(digits, 1),
        "grey digits": half_contrast(digits),
        "inverted digits": 255 - digits,
        "shuffled digits": rng.permuted(digits.reshape(len(digits), -1), axis=1).reshape(digits.shape),
        "noise": rng.integers(0, 256, digits.shape, dtype=np.uint8),
        "blank": np.stack([np.full(digits.shape[1:], grey, np.uint8) for grey in range(0, 256, 17)]),
    }


def letters(height: int, width: int) -> UInt8Array:
    """Capital letters, white on black, without I, O, S and Z, which look like digits."""
    drawn = []
    for letter in sorted(set(string.ascii_uppercase) - set("IOSZ")):
        canvas = Image.new("L", (_CANVAS_PIXELS, _CANVAS_PIXELS))
        draw = ImageDraw.Draw(canvas)
        font = ImageFont.load_default(_CANVAS_PIXELS * 1.2)
        draw.text((_CANVAS_PIXELS / 2, _CANVAS_PIXELS / 2), letter, 255, font, anchor="mm")
        drawn.append(prepare(canvas, height, width, 1, Preparation()))
    return np.stack(drawn)
