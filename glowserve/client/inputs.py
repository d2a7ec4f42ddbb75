"""Splits the images that callers pass into portions, each small enough for one call."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from glowserve.images import (
    InvalidImageError,
    UInt8Array,
    encode_pil,
    encode_png,
    open_encoded,
    read_file,
)

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | UInt8Array"
"""One image: a path, the bytes of a file, a Pillow image, or a uint8 array [H, W] or [H, W, C]."""

ImagesLike: TypeAlias = "ImageLike | Sequence[ImageLike]"
"""One image, several images, or a uint8 array [N, H, W, C]."""

Portion: TypeAlias = "list[bytes] | UInt8Array"
"""The images of one call: the bytes of files, or uint8 [N, H, W, C]."""

# Below the default limits of the service for one call: 256 images, 64 MiB and 64,000,000 pixels.
_MOST_IMAGES = 64
_MOST_BYTES = 16 * 2**20
_MOST_PIXELS = 16_000_000

_SEVERAL = "an array [N, H, W, C] in a list is no image; pass it alone, or a list of [H, W] or [H, W, C]"


def portions(images: ImagesLike) -> Iterator[Portion]:
    """Splits images into portions of at most 64 images, 16 MiB and 16 megapixels. A larger one is alone in its portion.

    If all images are arrays, portions are arrays, and the images must have the model's shape. Otherwise portions are
    files, and pictures may have any size. A file is read when its portion is taken.

    Raises:
        InvalidImageError: a file is not a picture, or an array does not have the type or shape of an image.
        OSError: a file cannot be read.
        TypeError: an image has none of the accepted types.
        ValueError: there are no images.
    """
    items = _items(images)
    if len(items) == 0:
        raise ValueError("there are no images; pass at least one")
    if isinstance(items, np.ndarray):
        step = _arrays_together(items[0].nbytes)
        for i in range(0, len(items), step):
            yield np.ascontiguousarray(items[i : i + step])
    else:
        yield from _file_portions(items)


def read_portions(images: Iterable[ImageLike] | ImageLike) -> Iterator[Portion]:
    """Splits an unbounded iterable of images into portions of the same sizes. Reads images when a portion is taken.

    Consecutive arrays of one shape become portions that are arrays, and must have the model's shape. Other images
    become portions that are files. There may be no images; then there are no portions.

    Raises:
        InvalidImageError: a file is not a picture, or an array does not have the type or shape of an image.
        OSError: a file cannot be read.
        TypeError: an image has none of the accepted types.
    """
    if isinstance(images, np.ndarray):
        images = _array(images) if images.ndim == 4 else [images]
    elif isinstance(images, str | bytes | os.PathLike | Image.Image) or not isinstance(images, Iterable):
        images = [images]
    for shape, run in itertools.groupby(map(_single, images), _shape):
        if shape is None:
            yield from _file_portions(run)
            continue
        arrays = (image for image in run if isinstance(image, np.ndarray))
        while together := list(itertools.islice(arrays, _arrays_together(math.prod(shape)))):
            yield np.stack(together)


def pair(one: ImageLike, other: ImageLike) -> Portion:
    """Two images as one portion, whatever their sizes.

    Raises:
        InvalidImageError: a file is not a picture, or an array does not have the type or shape of an image.
        OSError: a file cannot be read.
        TypeError: an image has none of the accepted types.
    """
    items = _items([one, other])
    return items if isinstance(items, np.ndarray) else [_file(item) for item in items]


def _file_portions(images: Iterable[ImageLike]) -> Iterator[list[bytes]]:
    portion: list[bytes] = []
    size = pixels = 0
    for image in images:
        file = _file(image)
        size, pixels = size + len(file), pixels + _pixels(file)
        if portion and (len(portion) == _MOST_IMAGES or size > _MOST_BYTES or pixels > _MOST_PIXELS):
            yield portion
            portion, size, pixels = [], len(file), _pixels(file)
        portion.append(file)
    yield portion


def _arrays_together(size: int) -> int:
    """How many arrays of `size` bytes make a portion."""
    return max(1, min(_MOST_IMAGES, _MOST_BYTES // max(1, size)))


def _single(image: ImageLike) -> ImageLike:
    """The image; an array gets the shape [H, W, C]."""
    if not isinstance(image, np.ndarray):
        return image
    if image.ndim == 4:
        raise InvalidImageError(_SEVERAL)
    return _array(image)


def _shape(image: ImageLike) -> tuple[int, ...] | None:
    """The shape of an array; None for other images."""
    return image.shape if isinstance(image, np.ndarray) else None


def _items(images: ImagesLike) -> Sequence[ImageLike] | UInt8Array:
    """A sequence of single images, or one array [N, H, W, C]."""
    if isinstance(images, np.ndarray):
        return _array(images) if images.ndim == 4 else _array(images)[None]
    if isinstance(images, str | bytes | os.PathLike | Image.Image):
        return [images]
    if not isinstance(images, Iterable):
        raise TypeError(_unknown(images))
    items = list(images)
    if any(isinstance(item, np.ndarray) and item.ndim == 4 for item in items):
        raise InvalidImageError(_SEVERAL)
    if items and all(isinstance(item, np.ndarray) for item in items):
        arrays = [_array(item) for item in items if isinstance(item, np.ndarray)]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise InvalidImageError(
                f"arrays of several shapes, {sorted(shapes)}, are not images of one model; "
                "bring them to its shape, or pass pictures"
            )
        return np.stack(arrays)
    return items


def _file(image: ImageLike) -> bytes:
    """The bytes of an image's file; an image without a file becomes a PNG file."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, Image.Image):
        return encode_pil(image)
    if isinstance(image, str | os.PathLike):
        return read_file(Path(image))
    if isinstance(image, np.ndarray):
        return encode_png(_array(image))
    raise TypeError(_unknown(image))


def _pixels(file: bytes) -> int:
    """The number of pixels of a picture; 0 for other files, which the service refuses with a better message."""
    try:
        with open_encoded(file) as picture:
            return picture.width * picture.height
    except InvalidImageError:
        return 0


def _array(image: UInt8Array) -> UInt8Array:
    """The array as uint8 [H, W, C] or [N, H, W, C]; [H, W] gets the axis C."""
    if image.dtype != np.uint8:
        raise InvalidImageError(f"an array of {image.dtype} is no image; pass uint8, 0 to 255")
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim not in (3, 4) or image.shape[-1] not in (1, 3) or 0 in image.shape[-3:]:
        raise InvalidImageError(
            f"an array of shape {list(image.shape)} is no image; pass [H, W], [H, W, C] or [N, H, W, C] with C 1 or 3"
        )
    return image


def _unknown(image: object) -> str:
    return f"{type(image).__name__} is no image; pass a path, bytes, a Pillow image or a uint8 array"
