"""Draws where an image is too unlikely, and where too likely: its deviations over the picture, beside the picture.

Shapes: H W C of an image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from glowserve.images import UInt8Array, on_background, to_pil

LIMIT = 16.0
"""Deviations have full colour from here on."""

# The two ends of ColorBrewer's scheme RdBu, which the colour-blind can tell apart.
_TOO_UNLIKELY, _TOO_LIKELY = (178, 24, 43), (33, 102, 172)
_NOT_FINITE = (255, 0, 255)
# The picture shines through.
_OPACITY = 0.85
# Pixels: of the longer side of a small picture once enlarged, between and around panels, of the legend's bar and text.
_SIDE, _GAP, _BAR, _TEXT = 256, 8, 12, 12
# The narrowest legend whose numbers do not touch.
_LEGEND = 192
_TICKS = (-16, -4, -1, 0, 1, 4, 16)


def heat_map(image: UInt8Array, deviations: npt.NDArray[np.floating[Any]]) -> Image.Image:
    """A picture of the image, enlarged, and beside it one of where the model finds it too unlikely or too likely.

    `coloured` says what the colours mean, and what the arguments are.
    """
    height, width = deviations.shape
    factor = max(1, _SIDE // max(height, width))
    panels = [_enlarged(each, factor) for each in (_opaque(image), to_pil(coloured(image, deviations)))]
    panel_width, panel_height = width * factor, height * factor
    legend_width = max(panel_width, _LEGEND)
    size = panel_width + legend_width + 3 * _GAP, panel_height + _BAR + 2 * _TEXT + 5 * _GAP
    canvas = Image.new("RGB", size, "white")
    for i, panel in enumerate(panels):
        canvas.paste(panel, (_GAP + i * (panel_width + _GAP), _GAP))
    canvas.paste(legend(legend_width), (panel_width + 2 * _GAP, panel_height + 2 * _GAP))
    return canvas


def _enlarged(picture: Image.Image, factor: int) -> Image.Image:
    size = picture.width * factor, picture.height * factor
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST)


def _opaque(image: UInt8Array) -> Image.Image:
    picture = to_pil(image)
    return on_background(picture, 255) if picture.has_transparency_data else picture


def coloured(image: UInt8Array, deviations: npt.NDArray[np.floating[Any]]) -> UInt8Array:
    """The image in light grey under the colours of the deviations, uint8 [H, W, 3].

    Red is too unlikely, blue too likely, grey as likely as at that place of held-out images; the stronger the colour,
    the farther from their mean, up to `LIMIT` standard deviations. The scale is linear near the mean and logarithmic
    far from it, so that both a blurred patch (+1) and the middle of a foreign one (-20) can be seen. Magenta is not
    finite.

    Args:
        image: uint8 [H, W, C]; alpha shows white.
        deviations: in standard deviations, negative where too unlikely, [H, W].
    """
    grey = np.asarray(_opaque(image).convert("L"), np.float64)[:, :, None]
    return _blended(160 + grey * 95 / 255, deviations)


def _blended(background: npt.NDArray[np.float64], deviations: npt.NDArray[np.floating[Any]]) -> UInt8Array:
    """The colours of deviations [H, W] over a background [H, W, 1], uint8 [H, W, 3]."""
    x = deviations[:, :, None].astype(np.float64)
    opacity = _OPACITY * _strength(np.abs(x))
    colour = np.where(x < 0, _TOO_UNLIKELY, _TOO_LIKELY)
    blended = np.where(np.isfinite(x), background * (1 - opacity) + colour * opacity, _NOT_FINITE)
    return np.rint(blended).astype(np.uint8)


def _strength(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The strength of the colour of a distance from the mean, 0 to 1."""
    strength: npt.NDArray[np.float64] = np.clip(np.arcsinh(distance) / np.arcsinh(LIMIT), 0, 1)
    return strength


def legend(width: int) -> Image.Image:
    """A bar of all colours of heat maps with their meaning, so many pixels wide."""
    canvas = Image.new("RGB", (width, _BAR + 2 * _TEXT + 2 * _GAP), "white")
    scale = np.sinh(np.linspace(-1, 1, width) * np.arcsinh(LIMIT))
    bar = _blended(np.full((_BAR, width, 1), 224.0), np.broadcast_to(scale, (_BAR, width)))
    canvas.paste(to_pil(bar))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_TEXT)
    numbers = _BAR + _GAP // 2
    for tick in _TICKS:
        x = width * (1 + np.arcsinh(tick) / np.arcsinh(LIMIT)) / 2
        anchor = {-LIMIT: "la", LIMIT: "ra"}.get(tick, "ma")
        draw.text((x, numbers), f"{tick:+d}" if tick else "0", "black", font, anchor)
    words = numbers + _TEXT + _GAP // 2
    draw.text((0, words), "too unlikely", _TOO_UNLIKELY, font, "la")
    draw.text((width, words), "too likely", _TOO_LIKELY, font, "ra")
    return canvas
