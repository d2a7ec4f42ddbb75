"""What the structure of a picture's file says about the work of decoding it, found without decoding.

JPEG: ITU-T T.81, Annex B. PNG: https://www.w3.org/TR/png-3/, section 5.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

# Pillow reads parts in Python, one at a time. Files have tens of them, a long colour profile has 255.
_MAX_PARTS = 10_000

# Every scan of a JPEG passes over all pixels, however few bytes it has. Encoders write about 10.
_MAX_SCANS = 32
# Every marker but those inside of a scan: a stuffed byte, a restart, padding.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG, _SCAN, _END = b"\xff\xd8", 0xDA, 0xD9
_MARKERS_ALONE = (0x01, 0xD8)

_PNG = b"\x89PNG\r\n\x1a\n"
_PLAIN_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"sRGB", b"gAMA", b"pHYs", b"IDAT", b"IEND")
_MOST_PLAIN_CHUNKS = 16


def excess(data: bytes) -> str:
    """What the file has too much of to be decoded soon, as a sentence; "" if nothing.

    Args:
        data: the whole file, of any format.
    """
    parts = scans = 0
    if data.startswith(_JPEG):
        for marker in _segments(data):
            parts, scans = parts + 1, scans + (marker == _SCAN)
            if scans > _MAX_SCANS:
                return f"it is a JPEG with more than {_MAX_SCANS} scans; save it again with another program"
            if parts > _MAX_PARTS:
                return f"it is a JPEG with more than {_MAX_PARTS} segments; save it again without metadata"
    elif data.startswith(_PNG):
        for kind, _ in _chunks(data):
            parts += kind != b"IDAT"
            if parts > _MAX_PARTS:
                return f"it is a PNG with more than {_MAX_PARTS} chunks; save it again without metadata"
    return ""


def plain_png_pixels(data: bytes) -> int | None:
    """The pixels of a PNG file without metadata, which might be compressed; None for other files."""
    if not data.startswith(_PNG):
        return None
    pixels = 0
    for number, (kind, position) in enumerate(_chunks(data)):
        if kind not in _PLAIN_CHUNKS or number == _MOST_PLAIN_CHUNKS:
            return None
        if kind == b"IHDR" and len(data) >= position + 8:
            width, height = struct.unpack_from(">2I", data, position)
            pixels = max(pixels, width * height)
    return pixels or None


def _segments(data: bytes) -> Iterator[int]:
    """The markers of a JPEG, up to its end. Others may follow: of a camera's preview, or in a video."""
    position = len(_JPEG)
    while marker := _MARKER.search(data, position):
        kind, position = data[marker.end() - 1], marker.end()
        if kind == _END:
            return
        yield kind
        if kind not in _MARKERS_ALONE:  # skip the segment, which may contain a whole JPEG, the thumbnail
            position += int.from_bytes(data[position : position + 2])


def _chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The names of a PNG's chunks, and where their contents begin."""
    position = len(_PNG)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        yield kind, position + 8
        position += 12 + length
