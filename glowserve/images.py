"""The one way in which glowserve reads a picture: training, client and service all come here.

A picture in a file becomes a uint8 array of a model's shape [H, W, C]. How is part of the model (a
`Preparation` in its manifest), because a likelihood is only comparable between images that were prepared alike.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

UInt8Array = npt.NDArray[np.uint8]

# What the service decodes. Kept short: every decoder is something a stranger can feed.
ENCODED_FORMATS = ("PNG", "JPEG", "WEBP")
# What a folder may hold; a client turns the others into PNG before it sends them.
FILE_FORMATS = (*ENCODED_FORMATS, "BMP", "GIF", "PPM", "TIFF")
FILE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pnm", ".tif", ".tiff"}
)


class InvalidImageError(ValueError):
    """Bytes that are no picture, a picture that is too large, or an array that is no image."""


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes an image; see `Preparation` in protos/glowserve/v1/manifest.proto."""

    filter: str = "bicubic"
    """The resampling filter: a name of Pillow's `Image.Resampling` in lower case."""

    background: int = 255
    """The grey value, 0 to 255, behind transparent pixels."""

    def __post_init__(self) -> None:
        if self.filter.upper() not in Image.Resampling.__members__:
            known = ", ".join(name.lower() for name in Image.Resampling.__members__)
            raise ValueError(f"filter is {self.filter!r}; it must be one of {known}")
        if not 0 <= self.background <= 255:
            raise ValueError(f"background is {self.background}; it must lie in 0 to 255")


def open_encoded(
    data: bytes, *, max_pixels: int | None = None, formats: tuple[str, ...] = FILE_FORMATS
) -> Image.Image:
    """Opens a picture from a file's bytes, reading its header alone.

    Args:
        data: the whole file.
        max_pixels: refuse a picture with more pixels (width times height) before any is decoded.
        formats: Pillow's names of the formats that are accepted.

    Raises:
        InvalidImageError: the bytes are in none of the formats, or the picture is too large.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise InvalidImageError(f"the picture is too large: {error}") from None
    except Exception:  # Pillow's decoders raise whatever a broken file leads them to
        accepted = ", ".join(formats)
        raise InvalidImageError(
            f"{len(data)} bytes are not a picture that can be read; accepted are {accepted}"
        ) from None
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise InvalidImageError(
            f"the picture has {image.width} x {image.height} pixels; at most {max_pixels} are accepted"
        )
    return image


def check_encoded(data: bytes) -> None:
    """Decodes a picture, whole, to see whether it can be.

    Raises:
        InvalidImageError: it cannot.
    """
    with open_encoded(data) as image:
        try:
            image.load()
        except Exception as error:  # see open_encoded
            raise InvalidImageError(f"the picture is damaged: {error}") from None


def prepare(
    image: Image.Image, height: int, width: int, channels: int, preparation: Preparation
) -> UInt8Array:
    """Brings a picture to a model's shape.

    Args:
        image: any picture; only its first frame counts.
        height: rows of the result.
        width: columns of the result.
        channels: 1 (grey) or 3 (red, green, blue).
        preparation: how.

    Returns:
        uint8 [height, width, channels].

    Raises:
        InvalidImageError: the picture's bytes end early or are damaged.
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


def prepare_encoded(
    data: bytes,
    height: int,
    width: int,
    channels: int,
    preparation: Preparation,
    *,
    max_pixels: int | None = None,
    formats: tuple[str, ...] = FILE_FORMATS,
) -> UInt8Array:
    """`open_encoded`, then `prepare`: a file's bytes to uint8 [height, width, channels]."""
    with open_encoded(data, max_pixels=max_pixels, formats=formats) as image:
        return prepare(image, height, width, channels, preparation)


def encode_png(image: UInt8Array) -> bytes:
    """The PNG file of an image, uint8 [H, W, C] with C 1 or 3."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "PNG")
    return buffer.getvalue()


def decode_png(data: bytes) -> UInt8Array:
    """The image, uint8 [H, W, C], in a PNG file made by `encode_png`."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        array = np.asarray(image, dtype=np.uint8)
    return array.reshape(*array.shape[:2], -1)


def to_pil(image: UInt8Array) -> Image.Image:
    """A Pillow image of uint8 [H, W, C] with C 1 or 3."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def grid(images: UInt8Array, columns: int | None = None, *, scale: int = 1, gap: int = 1) -> Image.Image:
    """Lays images out in a grid, row by row.

    Args:
        images: uint8 [N, H, W, C], N at least 1.
        columns: images a row; the grid is about square if left out.
        scale: how many pixels each pixel becomes, each way.
        gap: pixels between images, before scaling.
    """
    n, height, width, channels = images.shape
    columns = min(n, columns or int(np.ceil(np.sqrt(n))))
    rows = -(-n // columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    picture = to_pil(canvas)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def read_file(path: Path, *, max_pixels: int | None = None) -> bytes:
    """The bytes of a picture's file in one of `ENCODED_FORMATS`; other pictures are turned into PNG.

    Raises:
        InvalidImageError: the file is no picture, or a damaged one; the message begins with its path.
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    try:
        with open_encoded(data, max_pixels=max_pixels) as image:
            return data if image.format in ENCODED_FORMATS else encode_pil(image)
    except InvalidImageError as error:
        raise InvalidImageError(f"{path}: {error}") from None


def encode_pil(image: Image.Image) -> bytes:
    """The PNG file of a Pillow image, with its transparency and its EXIF orientation applied.

    Raises:
        InvalidImageError: the picture's bytes end early or are damaged.
    """
    buffer = io.BytesIO()
    try:
        upright = _upright(image)
        if _is_deep_grey(upright):  # PNG holds some of these, and `prepare` makes 8 bits of all
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
    """The picture with its EXIF orientation applied; one whose EXIF cannot be read stays as it is."""
    image.load()  # so that damaged pixels are not taken for damaged EXIF
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # see open_encoded
        return image


def _is_deep_grey(image: Image.Image) -> bool:
    """Whether it is grey in more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _flatten(image: Image.Image, background: int) -> Image.Image:
    """The picture in 8 bits a channel, without transparency."""
    if image.mode == "F":
        raise InvalidImageError(
            "it holds floating-point values, of no known range; save it with 8 or 16 bits a value"
        )
    if _is_deep_grey(image):
        deep = np.asarray(image)
        grey = np.empty(deep.shape, np.uint8)
        for row, values in zip(
            grey, deep, strict=True
        ):  # row by row: a whole copy of a large picture is large
            row[:] = (np.clip(values.astype(np.int64), 0, 65535) + 128) // 257
        return Image.fromarray(grey)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, (background, background, background))
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    return image
