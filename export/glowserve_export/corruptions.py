"""Images changed so that they no longer belong to the data that they come from.

After Hendrycks and Dietterich (2019, arXiv:1903.12261) and Nalisnick et al. (2019, arXiv:1810.09136).

Shapes: N images, uint8 [N, H, W, C]. Nothing here needs H = W.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageFilter

from glowserve.images import UInt8Array, to_pil

_JPEG_QUALITY = 10
_NOISE = 16
_GREY = 127.5


def corruptions(images: UInt8Array) -> Iterator[tuple[str, UInt8Array]]:
    """Yields the name of each change and the changed images, in the order of the originals.

    Args:
        images: uint8 [N, H, W, C].
    """
    rng = np.random.Generator(np.random.Philox(0))
    for radius in (0.5, 1, 2):
        yield f"blurred-{radius:g}", blurred(images, radius)
    yield "inverted", 255 - images
    if images.shape[3] == 3:
        yield "grey", grey(images)
    yield "half-contrast", half_contrast(images)
    yield "upside-down", images[:, ::-1]
    yield "mirrored-halves", mirrored_halves(images)
    yield "shuffled-patches", shuffled_patches(images, max(1, min(images.shape[1:3]) // 4), rng)
    yield "pixelated", pixelated(images)
    yield "jpeg", jpeg(images)
    yield "noisy", noisy(images, rng)
    yield "flat-colours", flat_colours(images, rng)
    yield "uniform-noise", rng.integers(0, 256, images.shape, dtype=np.uint8)


def blurred(images: UInt8Array, radius: float) -> UInt8Array:
    """Blurs with a Gaussian of this standard deviation in pixels."""
    return _each(images, lambda picture: picture.filter(ImageFilter.GaussianBlur(radius)))


def grey(images: UInt8Array) -> UInt8Array:
    """Takes the colour away; the images keep three channels."""
    return _each(images, lambda picture: picture.convert("L").convert(picture.mode))


def half_contrast(images: UInt8Array) -> UInt8Array:
    """Moves every value halfway to medium grey."""
    changed: UInt8Array = np.rint((images + _GREY) / 2).astype(np.uint8)
    return changed


def mirrored_halves(images: UInt8Array) -> UInt8Array:
    """Replaces the right half by the mirrored left half."""
    width = images.shape[2]
    changed = images.copy()
    changed[:, :, width - width // 2 :] = images[:, :, : width // 2][:, :, ::-1]
    return changed


def shuffled_patches(images: UInt8Array, size: int, rng: np.random.Generator) -> UInt8Array:
    """Cuts each image into squares and permutes them. A rest that no square fills stays where it is."""
    n, height, width, channels = images.shape
    rows, columns = height // size, width // size
    whole = images[:, : rows * size, : columns * size]
    squares = whole.reshape(n, rows, size, columns, size, channels).transpose(0, 1, 3, 2, 4, 5)
    squares = squares.reshape(n, rows * columns, size, size, channels)
    order = rng.permuted(np.tile(np.arange(rows * columns), (n, 1)), axis=1)
    squares = np.take_along_axis(squares, order[:, :, None, None, None], axis=1)
    squares = squares.reshape(n, rows, columns, size, size, channels).transpose(0, 1, 3, 2, 4, 5)
    changed = images.copy()
    changed[:, : rows * size, : columns * size] = squares.reshape(whole.shape)
    return changed


def pixelated(images: UInt8Array) -> UInt8Array:
    """Halves the resolution, and shows each mean as a square of 2 x 2 pixels."""

    def change(picture: Image.Image) -> Image.Image:
        half = (max(1, picture.width // 2), max(1, picture.height // 2))
        return picture.resize(half, Image.Resampling.BOX).resize(picture.size, Image.Resampling.NEAREST)

    return _each(images, change)


def jpeg(images: UInt8Array) -> UInt8Array:
    """Compresses to JPEG at quality 10, without alpha, and decodes again."""

    def change(picture: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        picture.convert(picture.mode.removesuffix("A")).save(buffer, "JPEG", quality=_JPEG_QUALITY)
        changed = Image.open(buffer)
        if picture.mode.endswith("A"):
            changed.putalpha(picture.getchannel("A"))
        return changed

    return _each(images, change)


def noisy(images: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Adds normal noise of standard deviation 16 to every value."""
    changed: UInt8Array = np.rint(images + rng.normal(0, _NOISE, images.shape)).clip(0, 255).astype(np.uint8)
    return changed


def flat_colours(images: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """As many images of one colour each, of any."""
    colours = rng.integers(0, 256, (len(images), 1, 1, images.shape[3]), dtype=np.uint8)
    return np.broadcast_to(colours, images.shape).copy()


def _each(images: UInt8Array, change: Callable[[Image.Image], Image.Image]) -> UInt8Array:
    changed = [np.asarray(change(to_pil(image)), np.uint8).reshape(image.shape) for image in images]
    return np.stack(changed)
