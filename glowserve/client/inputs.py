"""Splits the images and latents that callers pass into portions, each small enough for one call."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from glowserve.images import (
    ENCODED_FORMATS,
    MODES,
    InvalidImageError,
    UInt8Array,
    encode_pil,
    encode_png,
    open_encoded,
    read_file,
)


class BinaryFile(Protocol):
    """A file that was opened for reading in binary mode, such as io.BytesIO."""

    def read(self) -> bytes:
        """Everything from the current position to the end."""


ImageLike: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | UInt8Array"
)
"""One image: a path, the bytes of a file, an open file, a Pillow image, or a uint8 array [H, W] or [H, W, C].

Open files are read from their start, like Pillow does it, and left at the position where they were. Objects with
`__array__`, such as the tensors of PyTorch on the CPU, are arrays.
"""

LatentLike: TypeAlias = "npt.NDArray[np.floating[Any]]"
"""One latent: an array of floating-point numbers [D] or [1, D]."""

ImagesLike: TypeAlias = "ImageLike | Iterable[ImageLike]"
"""One image, several images, or a uint8 array [N, H, W, C]."""

Portion: TypeAlias = "list[bytes] | npt.NDArray[Any]"
"""The images of one call: the bytes of files, or uint8 [N, H, W, C]; or its latents, float32 [N, D]."""

Readable: TypeAlias = "UInt8Array | tuple[bytes, int]"
"""One image that was read: an array [H, W, C], or a file with its number of pixels."""

_SEVERAL = "an array [N, H, W, C] in a list is no image; pass it alone, or a list of [H, W] or [H, W, C]"
_ONE = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)


@dataclass(frozen=True)
class PortionLimits:
    """The most that a portion has, unless a single image has more.

    The defaults lie below those of the service for one call: 256 images, 64 MiB and 64,000,000 pixels.
    """

    images: int = 64
    """Images, or rows of another array."""

    size: int = 16 * 2**20
    """Bytes of files or arrays."""

    pixels: int = 16_000_000
    """Pixels of files, together."""

    def rows(self, size: int) -> int:
        """How many rows of an array, of `size` bytes each, make a portion."""
        return max(1, min(self.images, self.size // max(1, size)))


DEFAULT_LIMITS = PortionLimits()


def portions(images: ImagesLike) -> Iterator[Portion]:
    """Splits images into portions of at most 64 images, 16 MiB and 16 megapixels. A larger one is alone in its portion.

    If all images are arrays, portions are arrays, and the images must have the model's shape. Otherwise portions are
    files, and pictures may have any size. A file is read when its portion is taken. An iterator is read as portions
    are taken, too, as `read_portions` does it.

    Raises:
        InvalidImageError: a file is not a picture, or an array does not have the type or shape of an image.
        OSError: a file cannot be read.
        TypeError: an image has none of the accepted types.
        ValueError: there are no images.
    """
    if isinstance(images, Iterator) and not _is_one(images):
        found = read_portions(images)
        if (first := next(found, None)) is None:
            raise ValueError("there are no images; pass at least one")
        yield first
        yield from found
        return
    items = _items(images)
    if len(items) == 0:
        raise ValueError("there are no images; pass at least one")
    if isinstance(items, np.ndarray):
        yield from map(np.ascontiguousarray, split_rows(items, DEFAULT_LIMITS))
    else:
        yield from split_files(_files(enumerate(items)), DEFAULT_LIMITS)


def read_portions(images: Iterable[ImageLike] | ImageLike) -> Iterator[Portion]:
    """Splits an unbounded iterable of images into portions of the same sizes. Reads images when a portion is taken.

    Consecutive arrays of one shape become portions that are arrays, and must have the model's shape. Other images
    become portions that are files. There may be no images; then there are no portions.

    Raises:
        InvalidImageError: a file is not a picture, or an array does not have the type or shape of an image.
        OSError: a file cannot be read.
        TypeError: an image has none of the accepted types.
    """
    return join(read_image(i, image) for i, image in enumerate(several(images)))


def read_image(i: int, image: ImageLike) -> Readable:
    """Reads one image. A picture in a format that the service does not read becomes PNG.

    Args:
        i: its index, for messages.
        image: the image.

    Raises:
        InvalidImageError, OSError, TypeError, ValueError: see `portions`.
    """
    numbered = _single((i, image))
    return numbered[1] if isinstance(numbered[1], np.ndarray) else next(_files([numbered]))


def join(images: Iterable[Readable]) -> Iterator[Portion]:
    """Joins consecutive files, and consecutive arrays of one shape, into portions."""
    for shape, run in itertools.groupby(images, _shape):
        if shape is None:
            yield from split_files((image for image in run if isinstance(image, tuple)), DEFAULT_LIMITS)
            continue
        arrays = (image for image in run if isinstance(image, np.ndarray))
        while together := list(itertools.islice(arrays, DEFAULT_LIMITS.rows(math.prod(shape)))):
            yield np.stack(together)


def latent_portions(latents: npt.ArrayLike) -> Iterator[Portion]:
    """Splits latents [N, D] into portions, float32, of at most 64 rows and 16 MiB.

    Raises:
        TypeError: the array does not have numbers.
        ValueError: the array does not have the shape [N, D].
    """
    try:
        array = np.asarray(latents)
    except ValueError:
        raise ValueError(
            "latents have rows of several lengths; pass [N, D], as `encode` returns them"
        ) from None
    if array.dtype.kind not in "fiu":
        raise TypeError(f"latents are of type {array.dtype}; pass numbers [N, D], as `encode` returns them")
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"latents have shape {list(array.shape)}; pass [N, D], as `encode` returns them")
    with np.errstate(over="ignore"):  # the service refuses infinity
        return split_rows(array.astype(np.float32, copy=False), DEFAULT_LIMITS)


def image_or_latent(image: ImageLike | LatentLike) -> Portion:
    """One image as a portion, or one latent, float32 [1, D].

    Raises:
        InvalidImageError, OSError, TypeError: see `together`.
        ValueError: an array of floating-point numbers has not the shape [D] or [1, D].
    """
    given: Any = image
    if not hasattr(given, "__array__") or np.asarray(given).dtype.kind != "f":
        return together(given)
    array = np.asarray(given)
    if array.ndim not in (1, 2) or not array.size or array.size != array.shape[-1]:
        raise ValueError(f"the latent has shape {list(array.shape)}; pass one, [D] or [1, D]")
    with np.errstate(over="ignore"):  # the service refuses infinity
        return array.reshape(1, -1).astype(np.float32, copy=False)


def together(*images: ImageLike) -> Portion:
    """A few images as one portion, whatever their sizes.

    Raises:
        InvalidImageError: a file is not a picture, or an array does not have the type or shape of an image.
        OSError: a file cannot be read.
        TypeError: an image has none of the accepted types.
    """
    items = _items(images)
    return items if isinstance(items, np.ndarray) else [file for file, _ in _files(enumerate(items))]


def split_rows(array: npt.NDArray[Any], limits: PortionLimits) -> Iterator[npt.NDArray[Any]]:
    """Splits an array [N, ...], N at least 1, into portions."""
    step = limits.rows(array[0].nbytes)
    for i in range(0, len(array), step):
        yield array[i : i + step]


def split_files(files: Iterable[tuple[bytes, int]], limits: PortionLimits) -> Iterator[list[bytes]]:
    """Splits one or more files, each with its number of pixels, into portions."""
    portion: list[bytes] = []
    size = pixels = 0
    for file, own_pixels in files:
        size, pixels = size + len(file), pixels + own_pixels
        if portion and (len(portion) == limits.images or size > limits.size or pixels > limits.pixels):
            yield portion
            portion, size, pixels = [], len(file), own_pixels
        portion.append(file)
    yield portion


def split(portion: Portion, limits: PortionLimits) -> Iterator[Portion]:
    """Splits a portion into smaller ones."""
    if isinstance(portion, np.ndarray):
        return split_rows(portion, limits)
    return split_files(map(_with_pixels, portion), limits)


def _single(numbered: tuple[int, ImageLike]) -> tuple[int, ImageLike]:
    """The image after its checks; an array gets the shape [H, W, C]."""
    i, image = numbered
    try:
        return i, _checked(image)
    except (InvalidImageError, TypeError) as error:
        raise type(error)(f"images[{i}]: {error}") from None


def _checked(image: Any) -> ImageLike:
    if _is_one(image):
        one: ImageLike = image
        return one
    if not hasattr(image, "__array__"):
        raise TypeError(_unknown(image))
    array = np.asarray(image)
    if array.ndim == 4:
        raise InvalidImageError(_SEVERAL)
    return _array(array)


def _shape(image: Readable) -> tuple[int, ...] | None:
    """The shape of an array; None for a file."""
    return image.shape if isinstance(image, np.ndarray) else None


def _is_one(images: object) -> bool:
    """Whether it is one image, and no array. Bytes and open files are iterable, too."""
    return isinstance(images, _ONE) or (hasattr(images, "read") and not hasattr(images, "__array__"))


def several(images: Any) -> Iterable[Any]:
    """The images, of which there may be one.

    Raises:
        InvalidImageError, TypeError: it is neither an image nor an iterable.
    """
    if _is_one(images):
        return [images]
    if hasattr(images, "__array__"):
        array = np.asarray(images)
        if array.dtype.kind in "OU":  # an array or a column of paths, for example
            return list(array.ravel())
        return _array(array) if array.ndim == 4 else [_array(array)]
    if not isinstance(images, Iterable):
        raise TypeError(_unknown(images))
    return images


def _items(images: ImagesLike) -> Sequence[ImageLike] | UInt8Array:
    """A sequence of single images, or one array [N, H, W, C]."""
    found = several(images)
    if isinstance(found, np.ndarray):
        return found
    items = [image for _, image in map(_single, enumerate(found))]
    arrays = [item for item in items if isinstance(item, np.ndarray)]
    if not arrays or len(arrays) < len(items):
        return items
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise InvalidImageError(
            f"arrays of several shapes, {sorted(shapes)}, are not images of one model; "
            "bring them to its shape, or pass pictures"
        )
    return np.stack(arrays)


def _files(numbered: Iterable[tuple[int, ImageLike]]) -> Iterator[tuple[bytes, int]]:
    """The file of each image, and its number of pixels; an image without a file becomes a PNG file."""
    for i, image in numbered:
        try:
            yield _with_pixels(_file(image))
        except (InvalidImageError, TypeError) as error:
            if isinstance(image, str | os.PathLike):  # its message begins with the path
                raise
            raise type(error)(f"images[{i}]: {error}") from None
        except ValueError as error:  # such as a closed file's
            raise ValueError(f"images[{i}]: {error}") from None


def _file(image: Any) -> bytes:
    if isinstance(image, str | os.PathLike):
        return read_file(Path(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        return encode_pil(image)
    return encode_png(image) if isinstance(image, np.ndarray) else _read(image)


def _read(file: Any) -> bytes:
    """The whole content of an open file, which stays at its position."""
    try:
        position = file.tell()
        file.seek(0)
    except (AttributeError, OSError):  # a pipe, or an answer of a server
        position = None
    data = file.read()
    if position is not None:
        file.seek(position)
    if not isinstance(data, bytes):
        if hasattr(data, "close"):
            data.close()  # a coroutine, which nobody awaits
        raise TypeError(
            f"read() of {type(file).__name__} returns {type(data).__name__}; pass a file opened in binary mode, "
            "or its bytes"
        )
    return data


def _with_pixels(file: bytes) -> tuple[bytes, int]:
    """A file, as PNG if the service does not read its format, and its number of pixels.

    The service refuses bytes that are not a picture with a better message, so they are passed on as they are.
    """
    try:
        picture = open_encoded(file)
    except InvalidImageError:
        return file, 0
    with picture:
        pixels = picture.width * picture.height
        # A JPEG with more than one picture, as phones make them, is MPO for Pillow.
        is_read = picture.format in (*ENCODED_FORMATS, "MPO")
        return (file if is_read else encode_pil(picture)), pixels


def _array(image: npt.NDArray[Any]) -> UInt8Array:
    """The array as uint8 [H, W, C] or [N, H, W, C]; [H, W] gets the axis C."""
    if image.dtype != np.uint8:
        raise InvalidImageError(f"an array of {image.dtype} is no image; pass uint8, 0 to 255")
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim not in (3, 4) or image.shape[-1] not in MODES or 0 in image.shape[-3:]:
        raise InvalidImageError(
            f"an array of shape {list(image.shape)} is no image; pass [H, W], [H, W, C] or [N, H, W, C] with C 1 to 4"
        )
    return image


def _unknown(image: object) -> str:
    return f"{type(image).__name__} is no image; pass a path, bytes, an open file, a Pillow image or a uint8 array"
