"""Picture files: valid ones of every format and mode, changed ones, and decompression bombs."""

from __future__ import annotations

import io
import random
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.soak.fuzz.mutations import mutated

_PNG = b"\x89PNG\r\n\x1a\n"


@cache
def originals() -> tuple[bytes, ...]:
    """Valid files: PNG, JPEG and WebP in every mode, rotated and animated ones; and formats that are refused."""
    noise = Image.effect_noise((19, 13), 60)
    colour = Image.merge("RGB", [Image.effect_noise((19, 13), 60) for _ in range(3)])
    palette = colour.quantize(16)
    deep = Image.fromarray(np.asarray(noise).astype(np.uint16) * 257)
    translucent = colour.copy()
    translucent.putalpha(noise)
    frames = [colour, colour.transpose(Image.Transpose.ROTATE_180)]
    text = PngInfo()
    text.add_text("Comment", "x" * 60, zip=True)
    text.add_itxt("Title", "é" * 20)
    files = [
        *(_file(noise.convert(mode), "PNG") for mode in ("1", "L", "LA")),
        _file(deep, "PNG"),
        _file(colour, "PNG", pnginfo=text, icc_profile=bytes(range(200))),
        _file(translucent, "PNG"),
        _file(palette, "PNG"),
        _file(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        _file(noise, "PNG", transparency=7),
        _file(colour, "PNG", transparency=(1, 2, 3)),
        _file(colour, "PNG", save_all=True, append_images=frames),
        _file(noise, "JPEG"),
        _file(colour, "JPEG", progressive=True, icc_profile=bytes(300)),
        _file(colour.convert("CMYK"), "JPEG"),
        _file(colour.convert("YCbCr"), "JPEG", subsampling=2, quality=20),
        _file(colour, "MPO", save_all=True, append_images=frames),
        _file(colour, "WEBP"),
        _file(translucent, "WEBP", lossless=True),
        _file(colour, "WEBP", save_all=True, append_images=frames),
        *(_file(colour, kind, exif=_exif(turn)) for kind in ("PNG", "JPEG", "WEBP") for turn in range(10)),
        *(_file(colour, kind) for kind in ("GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000")),
    ]
    return tuple(files)


@cache
def bombs() -> tuple[bytes, ...]:
    """Small files that claim or contain large pictures or texts."""
    many = zlib.compress(bytes(50_000_000), 9)
    jpeg = bytearray(_file(Image.new("L", (8, 8)), "JPEG"))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = b"\xff\xff\xff\xff"
    canvas = b"WEBPVP8X\x0a\0\0\0\x02\0\0\0" + b"\xff\xff\xff" + b"\xff\0\0"
    return (
        *(
            _png((width, height))
            for width, height in ((2**31 - 1, 1), (2**16, 2**16), (20_000, 20_000), (0, 0))
        ),
        _png((8, 8), data=many),
        _png((8, 8), (b"zTXt", b"Comment\0\0" + many)),
        _png((8, 8), (b"iCCP", b"icc\0\0" + many)),
        _png((8, 8), (b"iTXt", b"Title\0\1\0\0\0" + many)),
        _png((8, 8), *((b"tEXt", b"k\0" + bytes(1000)) for _ in range(2000))),
        bytes(jpeg),
        b"RIFF" + struct.pack("<I", len(canvas)) + canvas,
        _file(Image.new("1", (5600, 5600)), "PNG"),
        _file(Image.new("L", (5600, 5600)), "JPEG", quality=1),
        _file(Image.new("1", (9000, 9000)), "PNG"),
        _file(Image.new("1", (14_000, 14_000)), "PNG"),
        _file(Image.new("L", (1, 60_000)), "PNG"),
    )


def picture(seed: int, number: int) -> bytes:
    """The picture with a number: mostly a changed file; else a valid one, a bomb, or random bytes after a file's magic.

    Args:
        seed: chooses the pictures.
        number: from 0, without an upper limit.
    """
    rng = random.Random(f"{seed}/picture/{number}")
    kind = rng.random()
    if kind < 0.005:
        return rng.choice(bombs())
    if kind < 0.03:
        return rng.choice(originals())
    if kind < 0.06:
        magic = rng.choice((b"", _PNG, b"\xff\xd8\xff", b"RIFF\x20\0\0\0WEBPVP8 ", b"RIFF\x20\0\0\0WEBPVP8X"))
        return magic + rng.randbytes(rng.randint(0, 300))
    data = mutated(rng, rng.choice(originals()), originals())
    return _with_correct_checksums(data) if rng.random() < 0.7 else data


def _file(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a description"
    return exif


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(size: tuple[int, int], *chunks: tuple[bytes, bytes], data: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">2I5B", *size, 8, 0, 0, 0, 0))
    body = _chunk(b"IDAT", data or zlib.compress(bytes(72)))
    return _PNG + header + b"".join(_chunk(*each) for each in chunks) + body + _chunk(b"IEND", b"")


def _with_correct_checksums(data: bytes) -> bytes:
    """Corrects the checksums of a PNG, so that a decoder reads the chunks that were changed."""
    if not data.startswith(_PNG):
        return data
    changed, at = bytearray(data), len(_PNG)
    while at + 12 <= len(changed):
        (length,) = struct.unpack_from(">I", changed, at)
        end = at + 8 + length
        if end + 4 > len(changed):
            break
        struct.pack_into(">I", changed, end, zlib.crc32(changed[at + 4 : end]))
        at = end + 4
    return bytes(changed)
