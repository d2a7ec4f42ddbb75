"""Reads, converts and writes pictures, for training, the client and the service.

A picture is a file or a Pillow image, of any size and mode. An image is a uint8 array [H, W, C] of a model's shape,
with C 1 to 4. The `Preparation` that converts a picture to an image is part of the model's manifest, since likelihoods
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

FITS = ("crop", "pad")
"""How a picture of other proportions than the model's becomes an image, see `Preparation.fit`."""

BITS_USED = (16, 12, 10)
"""The bits of 16 that a data set may use, see `Preparation.bits_used`."""

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""What the channels of an image are, by their number, as Pillow names it: the last of 2 and of 4 is alpha."""

COLOURS = {1: "grey", 2: "grey with alpha", 3: "RGB", 4: "RGB with alpha"}
"""The same, as people read it."""

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
    """The grey value, 0 to 255, behind transparent pixels and around a padded picture."""

    fit: str = "crop"
    """"crop" takes the middle of the picture; "pad" keeps all of it, and fills what it leaves of the image."""

    bits_used: int = 16
    """The bits of 16-bit grey values: white is 2^bits_used - 1. Cameras and microscopes store 12 or 10 bits in 16."""

    def __post_init__(self) -> None:
        if self.filter.upper() not in Image.Resampling.__members__:
            known = ", ".join(name.lower() for name in Image.Resampling.__members__)
            raise ValueError(f"filter is {self.filter!r}; it must be one of {known}")
        if not 0 <= self.background <= 255:
            raise ValueError(f"background is {self.background}; it must lie in 0 to 255")
        if self.fit not in FITS:
            raise ValueError(f"fit is {self.fit!r}; it must be one of {', '.join(FITS)}")
        if self.bits_used not in BITS_USED:
            raise ValueError(
                f"bits_used is {self.bits_used}; it must be one of {', '.join(map(str, BITS_USED))}"
            )


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

    Applies the EXIF orientation, converts the values to 8 bits, and the picture to grey or RGB on the background, or
    keeps its alpha where that is a channel of the model. Then the picture is resized, as `Preparation.fit` says.

    Args:
        image: the picture; of an animation, the first frame.
        height: H.
        width: W.
        channels: C, a key of `MODES`.
        preparation: the rules.
        max_pixels: the most pixels that the picture may have.

    Returns:
        uint8 [H, W, C].

    Raises:
        InvalidImageError: the picture is incomplete, damaged or too large, or the range of its values is unknown.
        MemoryError: there is not enough memory.
    """
    _check_size(image, max_pixels)
    try:
        upright = _upright(image, preparation.bits_used)
        fitted = _fit(_in_mode(upright, MODES[channels], preparation), (width, height), preparation)
    except (InvalidImageError, MemoryError):
        raise
    except Exception as error:  # see open_encoded
        raise InvalidImageError(f"the picture is damaged: {error}") from None
    return np.asarray(fitted, dtype=np.uint8).reshape(height, width, channels)


def encode_png(image: UInt8Array) -> bytes:
    """The PNG file of an image, uint8 [H, W, C]."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "PNG")
    return buffer.getvalue()


def decode_png(data: bytes) -> UInt8Array:
    """The image, uint8 [H, W, C], of a PNG file that `encode_png` wrote."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        array = np.asarray(image, dtype=np.uint8)
    return array.reshape(*array.shape[:2], -1)


def to_pil(image: UInt8Array) -> Image.Image:
    """A Pillow image of uint8 [H, W, C], in the mode of `MODES`."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


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
        upright = _upright(image, bits_used=None)
        if _is_deep_grey(upright) and upright.mode != "I;16":  # of which PNG has no form
            upright = _sixteen_bits(upright)
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


def _upright(image: Image.Image, bits_used: int | None) -> Image.Image:
    """The picture with its EXIF orientation applied, or as it is if its EXIF cannot be read."""
    # Pillow keeps the upper 8 bits of 16-bit colours. Once the picture is loaded, nothing tells that there were more.
    has_deep_colours = image.mode in ("LA", "RGB", "RGBA") and ";16" in str(getattr(image, "tile", ""))
    image.load()  # an error of damaged pixels must not be taken for one of the EXIF
    if has_deep_colours:
        _check_deep_colours(image, bits_used)
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # see open_encoded
        return image


def _check_deep_colours(image: Image.Image, bits_used: int | None) -> None:
    """Checks that the upper 8 of 16 bits have the colours."""
    if bits_used not in (None, 16):
        raise InvalidImageError(
            f"it has 16-bit colours or 16-bit alpha, and {bits_used} of 16 bits are read of grey values alone; save it "
            "with 8 bits per value"
        )
    colours = 1 if image.mode == "LA" else 3
    _check_brightness(max(int(np.asarray(strip)[..., :colours].max()) for _, strip in _strips(image)), 16)


def _is_deep_grey(image: Image.Image) -> bool:
    """Whether the picture is grey with more than 8 bits per pixel."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _check_range(image: Image.Image, bits_used: int | None) -> None:
    """Checks that the values of deep grey lie between black and white; None accepts any 16 bits."""
    if image.mode == "F":
        raise InvalidImageError(
            "it holds floating-point values, whose range is unknown; save it with 8 or 16 bits per value"
        )
    least, most = grey_range(image)
    if least < 0 or most > 65535:
        raise InvalidImageError(
            f"its values go from {least} to {most}, and what is white is unknown; save it with 8 or 16 bits per value"
        )
    if bits_used == 16:
        _check_brightness(most, 4096)
    elif bits_used is not None and most >= 2**bits_used:
        raise InvalidImageError(
            f"its 16-bit values go up to {most}, and the data has {bits_used} bits, up to {2**bits_used - 1}; scale "
            "them, or save it with 8 bits per value"
        )


def grey_range(image: Image.Image) -> tuple[int, int]:
    """The smallest and the largest value of a grey picture."""
    extrema = [(int(values.min()), int(values.max())) for _, values in _value_strips(image)]
    return min(low for low, _ in extrema), max(high for _, high in extrema)


def _check_brightness(most: int, enough: int) -> None:
    """Refuses 12 bits in 16, as cameras and microscopes store them, which would be nearly black: 4095 of 65535.

    PNG's chunk sBIT, the number of significant bits, does not help: in a valid file values fill 16 bits all the same,
    and programs that break this rule write no sBIT.
    """
    if 0 < most < enough:
        raise InvalidImageError(
            "its 16-bit values are all below 4096, so nearly black: it seems to hold 12 bits or fewer. Scale them so "
            "that white is 65535, or train with --bits-used 12 on grey pictures that all hold 12 bits; if it is meant "
            "to be that dark, save it with 8 bits"
        )


def _in_mode(image: Image.Image, mode: str, preparation: Preparation) -> Image.Image:
    """The picture in a mode of `MODES`; not a copy if it has that already."""
    if _is_deep_grey(image):
        _check_range(image, preparation.bits_used)
        image = _eight_bits(image, 2**preparation.bits_used - 1)
    if image.has_transparency_data:
        if not mode.endswith("A"):
            image = on_background(image, preparation.background)
        elif image.mode != mode:
            image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image, white: int) -> Image.Image:
    """Deep grey, rounded to 8 bits; with alpha if a value of it is transparent."""
    grey = Image.new("L", image.size)
    transparent = image.info.get("transparency")
    alpha = Image.new("L", image.size) if isinstance(transparent, int) else None
    for top, deep in _value_strips(image):
        rounded = (deep.astype(np.uint32) * 255 + white // 2) // white
        grey.paste(Image.fromarray(rounded.astype(np.uint8)), (0, top))
        if alpha is not None:
            alpha.paste(Image.fromarray(np.where(deep == transparent, 0, 255).astype(np.uint8)), (0, top))
    if alpha is not None:
        grey.putalpha(alpha)
    return grey


def _sixteen_bits(image: Image.Image) -> Image.Image:
    """Deep grey in the mode that PNG has a form of."""
    _check_range(image, None)
    deep = Image.fromarray(np.concatenate([values.astype(np.uint16) for _, values in _value_strips(image)]))
    if "transparency" in image.info:
        deep.info["transparency"] = image.info["transparency"]
    return deep


def _fit(picture: Image.Image, size: tuple[int, int], preparation: Preparation) -> Image.Image:
    """The picture in a size, width and height."""
    resampling = Image.Resampling[preparation.filter.upper()]
    if preparation.fit == "crop":
        return ImageOps.fit(picture, size, resampling)
    scale = min(size[0] / picture.width, size[1] / picture.height)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    colours = (preparation.background,) * len(picture.getbands())
    canvas = Image.new(picture.mode, size, (*colours[:-1], 0) if picture.mode.endswith("A") else colours)
    canvas.paste(
        picture.resize((width, height), resampling), ((size[0] - width) // 2, (size[1] - height) // 2)
    )
    return canvas


def on_background(image: Image.Image, background: int) -> Image.Image:
    """The picture as RGB, on the background where it is transparent."""
    flat = Image.new("RGB", image.size, (background, background, background))
    for top, strip in _strips(image):
        rgba = strip.convert("RGBA")
        flat.paste(rgba, (0, top), rgba.getchannel("A"))
    return flat


def _value_strips(image: Image.Image) -> Iterator[tuple[int, npt.NDArray[np.integer[Any]]]]:
    for top, strip in _strips(image):
        yield top, np.asarray(strip)


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The rows of a picture, some at a time to save memory, with the number of the first."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))
