"""Images that are not handwritten digits, of the digits' size."""

from __future__ import annotations

import string

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from glowserve.images import Preparation, UInt8Array, prepare

# Pillow's own font at this size fills a canvas of as many pixels about as a digit fills its own.
_FONT_PIXELS = 64


def strangers(digits: UInt8Array) -> dict[str, UInt8Array]:
    """Groups of images, each uint8 [N, H, W, 1], by what they are.

    Args:
        digits: uint8 [N, H, W, 1].
    """
    rng = np.random.default_rng(0)
    return {
        "letters": letters(*digits.shape[1:3]),
        "inverted digits": 255 - digits,
        "shuffled digits": rng.permuted(digits.reshape(len(digits), -1), axis=1).reshape(digits.shape),
        "noise": rng.integers(0, 256, digits.shape, dtype=np.uint8),
        "blank": np.stack([np.full(digits.shape[1:], grey, np.uint8) for grey in range(0, 256, 17)]),
    }


def letters(height: int, width: int) -> UInt8Array:
    """The capitals that are no digits either (so without I, O, S and Z), drawn white on black."""
    drawn = []
    for letter in sorted(set(string.ascii_uppercase) - set("IOSZ")):
        canvas = Image.new("L", (_FONT_PIXELS, _FONT_PIXELS))
        draw = ImageDraw.Draw(canvas)
        font = ImageFont.load_default(_FONT_PIXELS * 1.2)
        draw.text((_FONT_PIXELS / 2, _FONT_PIXELS / 2), letter, 255, font, anchor="mm")
        drawn.append(prepare(canvas, height, width, 1, Preparation()))
    return np.stack(drawn)
