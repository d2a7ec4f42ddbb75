"""Pictures for tests: files of every format, noise, and a PNG file that only has a header."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
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

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
