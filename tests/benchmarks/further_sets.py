"""Further images that do not belong: what was chosen on those of `glowserve_export.corruptions` is tested on these.

Shapes: N images, uint8 [N, H, W, C].
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from glowserve.images import UInt8Array, to_pil

Float64Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def further_sets(images: UInt8Array) -> Iterator[tuple[str, UInt8Array]]:
    """Yields names and sets, most of them made of the images.

    Args:
        images: uint8 [N, H, W, C], N at least 2.
    """
    rng = np.random.default_rng(1)
    values = images.astype(np.float64)
    yield "gratings", _gratings(images.shape, rng)
    yield "one-over-f-noise", _one_over_f(images.shape, rng)
    yield "gradients", _gradients(images.shape, rng)
    yield "salt-and-pepper", _salt(images, rng)
    yield "slight-noise", _bytes(values + rng.normal(0, 6, images.shape))
    yield "motion-blur", _bytes(sum(np.roll(values, shift, axis=2) for shift in range(3)) / 3)
    yield "occluded", _occluded(images, rng)
    yield "posterized", (images & 0xE0) + 16
    yield "brighter", _bytes(values + 50)
    yield "darker", _bytes(values * 0.4)
    yield "double-contrast", _bytes((values - 127.5) * 2 + 127.5)
    yield "gamma", _bytes(255 * np.sqrt(values / 255))
    yield "two-at-once", _bytes((values + values[::-1]) / 2)
    yield "quarter-turn", np.ascontiguousarray(np.rot90(images, 1, (1, 2)))
    yield "dark-lines", np.where((np.arange(images.shape[1]) % 4 == 0)[:, None, None], images // 2, images)
    for name, change in _CHANGES.items():
        yield name, _each(images, change)
    if images.shape[3] == 3:
        yield "swapped-colours", images[..., ::-1]
        yield "saturated", _each(images, lambda picture: ImageEnhance.Color(picture).enhance(2))
        yield "pale", _each(images, lambda picture: ImageEnhance.Color(picture).enhance(0.4))


def _jpeg(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=30)
    return Image.open(file)


def _zoomed(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    middle = picture.crop((width // 4, height // 4, width - width // 4, height - height // 4))
    return middle.resize(picture.size, Image.Resampling.BICUBIC)


def _tiled(picture: Image.Image) -> Image.Image:
    width, height = picture.width // 2, picture.height // 2
    tiled, tile = picture.copy(), picture.resize((width, height), Image.Resampling.BOX)
    for left in (0, width):
        for top in (0, height):
            tiled.paste(tile, (left, top))
    return tiled


def _framed(picture: Image.Image) -> Image.Image:
    small = picture.resize((picture.width - 8, picture.height - 8), Image.Resampling.BOX)
    return ImageOps.expand(small, 4)


_CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "sharpened": lambda picture: picture.filter(ImageFilter.UnsharpMask(1, 150, 0)),
    "median": lambda picture: picture.filter(ImageFilter.MedianFilter(3)),
    "thick": lambda picture: picture.filter(ImageFilter.MaxFilter(3)),
    "thin": lambda picture: picture.filter(ImageFilter.MinFilter(3)),
    "tilted": lambda picture: picture.rotate(30, Image.Resampling.BICUBIC),
    "slight-jpeg": _jpeg,
    "zoomed": _zoomed,
    "tiled": _tiled,
    "framed": _framed,
}


def _in_two_colours(shades: Float64Array, channels: int, rng: np.random.Generator) -> UInt8Array:
    """Shades from 0 to 1, [N, H, W], between two random colours."""
    dark, light = rng.integers(0, 256, (2, len(shades), 1, 1, channels))
    return _bytes(dark + (light - dark) * shades[..., None])


def _gratings(shape: tuple[int, ...], rng: np.random.Generator) -> UInt8Array:
    n, height, width, channels = shape
    frequency, angle, phase = rng.uniform([[0.02], [0], [0]], [[0.3], [np.pi], [2 * np.pi]], (3, n))[
        ..., None, None
    ]
    rows, columns = np.mgrid[:height, :width]
    along = columns * np.cos(angle) + rows * np.sin(angle)
    return _in_two_colours(0.5 + 0.5 * np.sin(2 * np.pi * frequency * along + phase), channels, rng)


def _gradients(shape: tuple[int, ...], rng: np.random.Generator) -> UInt8Array:
    n, height, width, channels = shape
    angle = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    rows, columns = np.mgrid[:height, :width]
    along = columns * np.cos(angle) + rows * np.sin(angle)
    along -= along.min(axis=(1, 2), keepdims=True)
    return _in_two_colours(along / along.max(axis=(1, 2), keepdims=True), channels, rng)


def _one_over_f(shape: tuple[int, ...], rng: np.random.Generator) -> UInt8Array:
    """Noise with the spectrum of photographs."""
    height, width = shape[1:3]
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    spectrum = np.fft.fft2(rng.normal(size=shape), axes=(1, 2)) / np.maximum(radius, 1 / height)[..., None]
    noise = np.fft.ifft2(spectrum, axes=(1, 2)).real
    return _bytes(128 + 50 * (noise - noise.mean(axis=(1, 2), keepdims=True)) / noise.std())


def _salt(images: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    where = rng.random(images.shape[:3])[..., None]
    return np.where(where < 0.02, 0, np.where(where > 0.98, 255, images)).astype(np.uint8)


def _occluded(images: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    changed, size = images.copy(), images.shape[1] // 3
    for image in changed:
        top, left = rng.integers(0, np.array(image.shape[:2]) - size + 1)
        image[top : top + size, left : left + size] = rng.integers(0, 256, image.shape[2])
    return changed


def _each(images: UInt8Array, change: Callable[[Image.Image], Image.Image]) -> UInt8Array:
    return np.stack([np.asarray(change(to_pil(image)), np.uint8).reshape(image.shape) for image in images])


def _bytes(values: Float64Array) -> UInt8Array:
    changed: UInt8Array = np.rint(values).clip(0, 255).astype(np.uint8)
    return changed
