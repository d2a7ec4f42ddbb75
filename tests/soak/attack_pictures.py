"""Small files that are large work: each takes seconds or a gigabyte to decode, or did before there were limits."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tests.glowserve.pictures import deep_png, encoded, png_with
from tests.service.decoder_processes import slow_pictures

SIDE = 8000
"""64,000,000 pixels: as many as are accepted."""


def _deep(width: int, height: int) -> bytes:
    return deep_png(np.full((height, width, 1), 40_000, np.uint16), colour_type=0)


def _blank(mode: str, kind: str, **options: Any) -> bytes:
    return encoded(
        Image.new(mode, (SIDE, SIDE), 5 if mode == "L" else (5, 6, 7, 8)[: len(mode)]), kind, **options
    )


def _scans(number: int) -> bytes:
    jpeg = encoded(Image.new("RGB", (SIDE, SIDE)), "JPEG", progressive=True)
    starts = [match.start() for match in re.finditer(b"\xff\xda", jpeg)]
    return jpeg[:-2] + jpeg[starts[-1] : -2] * (number - len(starts)) + jpeg[-2:]


def _interlaced() -> bytes:
    """An interlaced PNG: seven passes, each over some of the rows and columns."""
    starts_and_steps = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    compress, data = zlib.compressobj(1), []
    for left, top, across, down in starts_and_steps:
        row = bytes(1 + 4 * len(range(left, SIDE, across)))
        data += [compress.compress(row * len(range(top, SIDE, down)))]
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 6, 0, 0, 1)
    png = encoded(Image.new("RGBA", (1, 1)), "PNG")
    pixels = b"".join([*data, compress.flush()])
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return png[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def _lossless() -> bytes:
    """Noise of few colours, in a large WebP."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 4, (500, 500, 4), dtype=np.uint8) * 60)
    picture = small.resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return encoded(picture, "WEBP", lossless=True, method=0, quality=0)


def _exif() -> bytes:
    """A directory of 65,535 tags, each of which is the whole file."""
    tags = b"".join(struct.pack(">HHII", i, 7, 780_000, 8) for i in range(65_535))
    return png_with(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + tags + bytes(4))


def _frames() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("L", (64, 64), i % 256) for i in range(5000)]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], minimize_size=False, method=0)
    return buffer.getvalue()


def _segments(number: int) -> bytes:
    jpeg = encoded(Image.new("L", (8, 8)), "JPEG")
    return jpeg[:2] + b"\xff\xe5\0\2" * number + jpeg[2:]


ATTACKS: dict[str, Callable[[], list[bytes]]] = {
    "16-bit PNG, 16 x 2,000,000": lambda: [_deep(16, 2_000_000)],
    "16-bit PNG, 1 x 32,000,000": lambda: [_deep(1, 32_000_000)],
    "16-bit PNG, 8000 x 8000": lambda: [_deep(SIDE, SIDE)],
    "RGBA PNG, 8000 x 8000": lambda: [_blank("RGBA", "PNG")],
    "interlaced RGBA PNG, 8000 x 8000": lambda: [_interlaced()],
    "JPEG of 32 scans, 8000 x 8000": lambda: [_scans(32)],
    "JPEG of 200 scans, 8000 x 8000": lambda: [_scans(200)],
    "JPEG of 15,000,000 segments": lambda: [_segments(15_000_000)],
    "lossless WebP, 8000 x 8000": lambda: [_lossless()],
    "WebP of 5000 frames": lambda: [_frames()],
    "PNG of 2,000,000 chunks": lambda: [png_with(b"abCd", b"", times=2_000_000)],
    "PNG with EXIF of 65,535 tags": lambda: [_exif()],
    "200 PNG with texts of 60 MiB": slow_pictures,
}
"""Makes the files of a call, by what they are."""
