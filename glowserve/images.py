"""Reads, converts and writes pictures, for training, the client and the service.

A picture is a file or a Pillow image, of any size and mode. An image is a uint8 array [H, W, C] of a model's shape,
with C 1 or 3. The `Preparation` that converts a picture to an image is part of the model's manifest, since likelihoods
are comparable only between images that were prepared in the same way.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

UInt8Array = npt.NDArray[np.uint8]

ENCODED_FORMATS = ("PNG", "JPEG", "WEBP")
"""The formats that the service decodes, as Pillow names them. Few, since anybody can send bytes to these decoders."""

FILE_FORMATS = (*ENCODED_FORMATS, "BMP", "GIF", "PPM", "TIFF")
"""The formats that training and the client read. The client converts the last four to PNG before it sends them."""


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
        InvalidImageError: the bytes are in none of the formats, or the picture has more pixels than Pillow accepts.
    """
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise InvalidImageError(f"the picture is too large: {error}") from None
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
        except Exception as error:  # see open_encoded
            raise InvalidImageError(f"the picture is damaged: {error}") from None


def prepare(
    image: Image.Image, height: int, width: int, channels: int, preparation: Preparation
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

    Returns:
        uint8 [H, W, C].

    Raises:
        InvalidImageError: the picture is incomplete or damaged, or holds floating-point values.
    """
    try:
        upright = _upright(image)
        flat = _flatten(upright, preparation.background).convert("L" if channels == 1 else "RGB")
        fitted = ImageOps.fit(flat, (width, height), Image.Resampling[preparation.filter.upper()])
    except InvalidImageError:
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
    n, height, width, channels = images.shape
    columns = min(n, columns or int(np.ceil(np.sqrt(n))))
    rows = -(-n // columns)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = 1 + (i // columns) * (height + 1), 1 + (i % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = image
    picture = to_pil(canvas)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


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
        InvalidImageError: the picture is incomplete or damaged, or holds floating-point values.
    """
    buffer = io.BytesIO()
    try:
        upright = _upright(image)
        if _is_deep_grey(upright):  # PNG has no 32-bit grey; `prepare` converts every deep grey to 8 bits
            upright = _flatten(upright, background=0)
        if upright.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
        upright.save(buffer, "PNG")
    except InvalidImageError:
        raise
    except Exception as error:  # see open_encoded
        raise InvalidImageError(f"the picture is damaged: {error}") from None
    return buffer.getvalue()


def _upright(image: Image.Image) -> Image.Image:
    """The picture with its EXIF orientation applied, or as it is if its EXIF cannot be read."""
    image.load()  # an error of damaged pixels must not be taken for one of the EXIF
    try:
        return ImageOps.exif_transpose(image)
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
        deep = np.asarray(image)
        grey = np.empty(deep.shape, np.uint8)
        for row, values in zip(grey, deep, strict=True):  # by row, to save memory
            row[:] = (np.clip(values.astype(np.int64), 0, 65535) + 128) // 257
        return Image.fromarray(grey)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, (background, background, background))
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    return image
