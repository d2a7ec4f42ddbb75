"""Pictures for tests: files of every format, noise, and PNG files that Pillow does not write."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from glowserve.images import Preparation, UInt8Array, open_encoded, prepare

GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
"""Every grey value of 8 bits."""

DEEP = GREYS[..., 0].astype(np.uint16) * 257
"""The same grey values in 16 bits."""


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The file of a picture in a format that Pillow names `kind`."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(rng: np.random.Generator, *shape: int) -> UInt8Array:
    """Random values, uint8."""
    return rng.integers(0, 256, shape, dtype=np.uint8)


def read(data: bytes, shape: tuple[int, int, int], preparation: Preparation | None = None) -> UInt8Array:
    """The image, uint8 [H, W, C], of a picture's file."""
    with open_encoded(data) as picture:
        return prepare(picture, *shape, preparation or Preparation())


def png_header(width: int, height: int) -> bytes:
    """A PNG file whose header announces a size, and which has no pixels."""
    return _png((width, height), 8, 0, b"")


def png_with(
    kind: bytes, content: bytes, *, times: int = 1, last: bool = False, first: tuple[int, int] = (8, 8)
) -> bytes:
    """A PNG file of 8 x 8 black pixels with another chunk, before the pixels or after them.

    Args:
        kind: the chunk's name.
        content: its bytes.
        times: how many there are.
        last: whether they come after the pixels.
        first: the size in the header that comes first.
    """
    chunks, pixels = times * [(kind, content)], zlib.compress(bytes(8 * 9))
    return _png(first, 8, 0, pixels, after=chunks) if last else _png(first, 8, 0, pixels, before=chunks)


def deep_png(values: npt.NDArray[np.uint16], *, colour_type: int) -> bytes:
    """A PNG file of 16 bits for each value of [H, W, C], which Pillow cannot write."""
    rows = (b"\0" + row.astype(">u2").tobytes() for row in values)
    height, width = values.shape[:2]
    return _png((width, height), 16, colour_type, zlib.compress(b"".join(rows), 1))


def png_with_depth(values: npt.NDArray[np.uint16], *, transparent: int) -> bytes:
    """A PNG file of 16 bits of grey, [H, W], of which one value is transparent."""
    plain = deep_png(values[..., None], colour_type=0)
    at = plain.index(b"IDAT") - 4
    return plain[:at] + chunk(b"tRNS", transparent.to_bytes(2)) + plain[at:]


def _png(
    size: tuple[int, int],
    depth: int,
    colour_type: int,
    pixels: bytes,
    before: Sequence[tuple[bytes, bytes]] = (),
    after: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    header = struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *before, (b"IDAT", pixels), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
