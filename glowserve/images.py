"""Reads, converts and writes pictures, for training, the client and the service.

A picture is a file or a Pillow image, of any size and mode. An image is a uint8 array [H, W, C] of a model's shape,
with C 1 or 3. The `Preparation` that converts a picture to an image is part of the model's manifest, since likelihoods
are comparable only between images that were prepared in the same way.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from glowserve.file_structure import excess

UInt8Array = npt.NDArray[np.uint8]

ENCODED_FORMATS = ("PNG", "JPEG", "WEBP")
"""The formats that the service decodes, as Pillow names them. Few, since anybody can send bytes to these decoders."""

FILE_FORMATS = (*ENCODED_FORMATS, "BMP", "GIF", "PPM", "TIFF")
"""The formats that training and the client read. The client converts the last four to PNG before it sends them."""

MAX_PIXELS = 64_000_000
"""The most pixels of a picture, in training as in scoring: a camera of 61 megapixels has no more."""

MAX_SIDE = 65_535
"""The most pixels of a side, which is also JPEG's limit. Decoders and conversions have a cost for each row."""

# Conversions that take more memory than the picture do so for about this many pixels at a time.
_STRIP_PIXELS = 2**20


class InvalidImageError(ValueError):
    """Bytes that are not a picture, a picture that is damaged or too large, or an array of a wrong shape or type."""


@dataclass(frozen=True)
class Preparation:
    """How a picture is converted to an image; see `Preparation` in protos/glowserve/v1/manifest.proto.

    Raises:
        ValueError: a value is not allowed; the message names the field and the allowed values.
    """

    filter: str = "bicubic"
    """The resampling filter: a name of Pillow's `Image.Resampling`, in lower case."""

    background: int = 255
    """The grey value, 0 to 255, behind transparent pixels."""

    def __post_init__(self) -> None:
        if self.filter.upper() not in Image.Resampling.__members__:
            known = ", ".join(name.lower() for name in Image.Resampling.__members__)
            raise ValueError(f"filter is {self.filter!r}; it must be one of {known}")
        if not 0 <= self.background <= 255:
            raise ValueError(f"background is {self.background}; it must lie in 0 to 255")


def open_encoded(data: bytes, *, formats: tuple[str, ...] = FILE_FORMATS) -> Image.Image:
    """Opens a picture from the bytes of a file. Reads only the header; `prepare` decodes the pixels.

    Args:
        data: the whole file.
        formats: the accepted formats, as Pillow names them.

    Raises:
        InvalidImageError: the bytes are in none of the formats, the picture has more pixels than Pillow accepts, or
            the file has so many parts that decoding would take long.
    """
    if reason := excess(data):
        raise InvalidImageError(reason)
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidImageError(f"the picture is too large: {error}") from None
    except MemoryError:
        raise
    except Exception:  # damaged files make Pillow's decoders raise errors of many types
        accepted = ", ".join(formats)
        raise InvalidImageError(
            f"{len(data)} bytes are not a picture that can be read; accepted are {accepted}"
        ) from None


def check_encoded(data: bytes) -> None:
    """Decodes a whole picture, to check its pixels.

    Args:
        data: the whole file.

    Raises:
        InvalidImageError: the bytes are not a picture, or the pixels are damaged.
    """
    with open_encoded(data) as image:
        try:
            image.load()
        except MemoryError:
            raise
        except Exception as error:  # see open_encoded
            raise InvalidImageError(f"the picture is damaged: {error}") from None


def prepare(
    image: Image.Image,
    height: int,
    width: int,
    channels: int,
    preparation: Preparation,
    *,
    max_pixels: int = MAX_PIXELS,
) -> UInt8Array:
    """Converts a picture to an image of a model's shape.

    Applies the EXIF orientation, draws the picture on the background, converts it to grey or RGB, crops the middle to
    the proportions of the model, and resizes it.

    Args:
        image: the picture; of an animation, the first frame.
        height: H.
        width: W.
        channels: C, 1 (grey) or 3 (red, green, blue).
        preparation: the filter and the background.
        max_pixels: the most pixels that the picture may have.

    Returns:
        uint8 [H, W, C].

    Raises:
        InvalidImageError: the picture is incomplete, damaged or too large, or the range of its values is unknown.
        MemoryError: there is not enough memory.
    """
    _check_size(image, max_pixels)
    try:
        upright = _upright(image)
        flat = _in_mode(_flatten(upright, preparation.background), "L" if channels == 1 else "RGB")
        fitted = ImageOps.fit(flat, (width, height), Image.Resampling[preparation.filter.upper()])
    except (InvalidImageError, MemoryError):
        raise
    except Exception as error:  # see open_encoded
        raise InvalidImageError(f"the picture is damaged: {error}") from None
    return np.asarray(fitted, dtype=np.uint8).reshape(height, width, channels)


def encode_png(image: UInt8Array) -> bytes:
    """The PNG file of an image, uint8 [H, W, C] with C 1 or 3."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "PNG")
    return buffer.getvalue()


def decode_png(data: bytes) -> UInt8Array:
    """The image, uint8 [H, W, C], of a PNG file that `encode_png` wrote."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        array = np.asarray(image, dtype=np.uint8)
    return array.reshape(*array.shape[:2], -1)


def to_pil(image: UInt8Array) -> Image.Image:
    """A Pillow image of uint8 [H, W, C] with C 1 or 3."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


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


def read_file(path: Path) -> bytes:
    """The bytes of a picture's file. A picture in none of `ENCODED_FORMATS` is converted to PNG.

    Raises:
        InvalidImageError: the file is not a picture, or is damaged; the message begins with its path.
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    try:
        with open_encoded(data) as image:
            return data if image.format in ENCODED_FORMATS else encode_pil(image)
    except InvalidImageError as error:
        raise InvalidImageError(f"{path}: {error}") from None


def encode_pil(image: Image.Image) -> bytes:
    """The PNG file of a Pillow image. Keeps its transparency, and applies its EXIF orientation.

    Raises:
        InvalidImageError: the picture is incomplete or damaged, a side is too long, or the range of its values is
            unknown.
    """
    _check_size(image, None)
    buffer = io.BytesIO()
    try:
        upright = _upright(image)
        if _is_deep_grey(upright) and upright.mode != "I;16":  # of which PNG has no form
            upright = _flatten(upright, background=0)
        if upright.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
            upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
        upright.save(buffer, "PNG")
    except (InvalidImageError, MemoryError):
        raise
    except Exception as error:  # see open_encoded
        raise InvalidImageError(f"the picture is damaged: {error}") from None
    return buffer.getvalue()


def _check_size(image: Image.Image, max_pixels: int | None) -> None:
    """Checks the size of a picture, which is in its header."""
    width, height = image.size
    if max(width, height) > MAX_SIDE:
        raise InvalidImageError(
            f"it has {width} x {height} pixels; a side may have at most {MAX_SIDE}: crop it, or make it smaller"
        )
    if max_pixels is not None and width * height > max_pixels:
        raise InvalidImageError(
            f"it has {width} x {height} pixels, which is {width * height}; at most {max_pixels} are accepted: "
            "make it smaller"
        )


def _upright(image: Image.Image) -> Image.Image:
    """The picture with its EXIF orientation applied, or as it is if its EXIF cannot be read."""
    # Pillow keeps the upper 8 bits of 16-bit colours. Once the picture is loaded, nothing tells that there were more.
    has_deep_colours = image.mode in ("RGB", "RGBA") and ";16" in str(getattr(image, "tile", ""))
    image.load()  # an error of damaged pixels must not be taken for one of the EXIF
    if has_deep_colours:
        _check_brightness(max(int(np.asarray(strip)[..., :3].max()) for _, strip in _strips(image)), 16)
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # see open_encoded
        return image


def _is_deep_grey(image: Image.Image) -> bool:
    """Whether the picture is grey with more than 8 bits per pixel."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _flatten(image: Image.Image, background: int) -> Image.Image:
    """The picture with 8 bits per channel, on the background where it is transparent."""
    if image.mode == "F":
        raise InvalidImageError(
            "it holds floating-point values, whose range is unknown; save it with 8 or 16 bits per value"
        )
    if _is_deep_grey(image):
        _check_range(image)
        return _eight_bits(image, background)
    return _on_background(image, background) if image.has_transparency_data else image


def _check_range(image: Image.Image) -> None:
    """Checks that the values of deep grey use the range of 16 bits."""
    extrema = [(int(deep.min()), int(deep.max())) for _, deep in _deep_strips(image)]
    least, most = min(low for low, _ in extrema), max(high for _, high in extrema)
    if least < 0 or most > 65535:
        raise InvalidImageError(
            f"its values go from {least} to {most}, and what is white is unknown; save it with 8 or 16 bits per value"
        )
    _check_brightness(most, 4096)


def _check_brightness(most: int, enough: int) -> None:
    """Refuses 12 bits in 16, as cameras and microscopes store them, which would be nearly black: 4095 of 65535.

    PNG's chunk sBIT, the number of significant bits, does not help: in a valid file values fill 16 bits all the same,
    and programs that break this rule write no sBIT.
    """
    if 0 < most < enough:
        raise InvalidImageError(
            "its 16-bit values are all below 4096, so nearly black: it seems to hold 12 bits or fewer. Scale them so "
            "that white is 65535; if it is meant to be that dark, save it with 8 bits"
        )


def _eight_bits(image: Image.Image, background: int) -> Image.Image:
    """Deep grey, rounded to 8 bits, on the background where it is transparent."""
    grey = Image.new("L", image.size)
    transparent = image.info.get("transparency")
    for top, deep in _deep_strips(image):
        rounded = ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if isinstance(transparent, int):
            rounded[deep == transparent] = background
        grey.paste(Image.fromarray(rounded), (0, top))
    return grey


def _on_background(image: Image.Image, background: int) -> Image.Image:
    """The picture as RGB, on the background where it is transparent."""
    flat = Image.new("RGB", image.size, (background, background, background))
    for top, strip in _strips(image):
        rgba = strip.convert("RGBA")
        flat.paste(rgba, (0, top), rgba.getchannel("A"))
    return flat


def _deep_strips(image: Image.Image) -> Iterator[tuple[int, npt.NDArray[np.integer[Any]]]]:
    for top, strip in _strips(image):
        yield top, np.asarray(strip)


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The rows of a picture, some at a time to save memory, with the number of the first."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The picture in a mode; not a copy if it has that already."""
    return image if image.mode == mode else image.convert(mode)
