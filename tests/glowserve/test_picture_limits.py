"""What a small file may not do: take minutes or gigabytes to become an image."""

from __future__ import annotations

import contextlib
import re
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glowserve.images import (
    MAX_PIXELS,
    MAX_SIDE,
    InvalidImageError,
    Preparation,
    encode_pil,
    open_encoded,
    prepare,
)
from glowserve.runtime.config import Limits
from tests.glowserve.pictures import chunk, encoded, noise, png_header, png_with, read

in_linux = pytest.mark.skipif(sys.platform != "linux", reason="measures memory by /proc")

SECONDS = 20.0
"""Ten times what the slowest of these takes."""


def jpeg_of_scans(size: tuple[int, int], scans: int) -> bytes:
    """A progressive JPEG in which the last scan is repeated."""
    jpeg = encoded(Image.new("L", size), "JPEG", progressive=True)
    starts = [match.start() for match in re.finditer(b"\xff\xda", jpeg)]
    return jpeg[:-2] + jpeg[starts[-1] : -2] * (scans - len(starts)) + jpeg[-2:]


# Sides and pixels


@pytest.mark.parametrize("size", [(16, 2_000_000), (1, 32_000_000), (2_000_000, 16), (1, MAX_SIDE + 1)])
def test_a_side_is_limited(size: tuple[int, int]) -> None:
    width, height = size
    with (
        open_encoded(png_header(width, height)) as picture,
        pytest.raises(
            InvalidImageError, match=f"it has {width} x {height} pixels; a side may have at most 65535"
        ),
    ):
        prepare(picture, 8, 8, 1, Preparation())


def test_the_longest_side_is_accepted() -> None:
    for size in ((1, MAX_SIDE), (MAX_SIDE, 1)):
        assert read(encoded(Image.new("L", size, 77), "PNG"), (8, 8, 1)).max() == 77


def test_a_client_refuses_a_long_side_of_a_pillow_image() -> None:
    with pytest.raises(InvalidImageError, match="a side may have at most 65535"):
        encode_pil(Image.new("1", (2, MAX_SIDE + 1)))


def test_training_and_scoring_have_the_same_limit_of_pixels() -> None:
    assert Limits().max_pixels == MAX_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns, of more pixels
        for size in ((7000, 7000), (9504, 6336)):  # a camera of 61 megapixels
            with (
                open_encoded(png_header(*size)) as picture,
                pytest.raises(InvalidImageError, match="damaged"),
            ):
                prepare(picture, 8, 8, 1, Preparation())
    with (
        open_encoded(png_header(8001, 8000)) as picture,
        pytest.raises(
            InvalidImageError, match=r"8001 x 8000 pixels, which is 64008000; at most 64000000 are"
        ),
    ):
        prepare(picture, 8, 8, 1, Preparation())


@pytest.mark.parametrize("action", ["error", "ignore"])
def test_pillows_warning_of_many_pixels_never_hides_what_is_wrong(action: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(action)  # type: ignore[arg-type]
        with pytest.raises(InvalidImageError, match=r"too large|at most 64000000"):
            read(png_header(10_000, 10_000), (8, 8, 1))


# Scans


def test_the_scans_of_a_jpeg_are_limited() -> None:
    assert read(jpeg_of_scans((64, 64), 32), (8, 8, 1)).shape == (8, 8, 1)
    data = jpeg_of_scans((8000, 8000), 33)
    with pytest.raises(InvalidImageError, match="a JPEG with more than 32 scans; save it again"):
        open_encoded(data)


def test_a_scan_cannot_be_hidden_behind_a_marker_that_stands_alone() -> None:
    data = jpeg_of_scans((64, 64), 40)
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 1)
    hidden = data[:second] + b"\xff\x01" + data[second:]
    with pytest.raises(InvalidImageError, match="more than 32 scans"):
        open_encoded(hidden)


@pytest.mark.parametrize("times", [20_000, 1_000_000])
def test_the_segments_of_a_jpeg_and_the_chunks_of_a_png_are_limited(times: int) -> None:
    jpeg = encoded(Image.new("L", (8, 8)), "JPEG")
    segments = jpeg[:2] + times * b"\xff\xe5\0\2" + jpeg[2:]
    chunks = png_with(b"abCd", b"", times=times)
    chunks_at_the_end = png_with(b"tIME", b"", times=times, last=True)
    began = time.monotonic()
    for data in (segments, chunks, chunks_at_the_end):
        with pytest.raises(InvalidImageError, match=r"more than 10000 (segments|chunks); save it again"):
            open_encoded(data)
    assert time.monotonic() - began < 1


def test_pixels_in_many_chunks_are_accepted(rng: np.random.Generator) -> None:
    plain = encoded(Image.fromarray(noise(rng, 100, 100, 3)), "PNG", compress_level=0)
    at = plain.index(b"IDAT") - 4
    length = int.from_bytes(plain[at : at + 4])
    pixels = plain[at + 8 : at + 8 + length]
    parts = b"".join(chunk(b"IDAT", bytes([each])) for each in pixels)
    data = plain[:at] + parts + plain[at + 12 + length :]
    np.testing.assert_array_equal(read(data, (8, 8, 3)), read(plain, (8, 8, 3)))


def test_scans_of_thumbnails_and_of_what_follows_the_picture_do_not_count(rng: np.random.Generator) -> None:
    picture = encoded(Image.fromarray(noise(rng, 40, 40, 3)), "JPEG", progressive=True)
    scans = 50 * b"\xff\xda\0\x02"
    thumbnail = b"\xff\xe2" + (len(scans) + 2).to_bytes(2) + scans
    data = picture[:2] + thumbnail + picture[2:] + 20 * picture
    np.testing.assert_array_equal(read(data, (8, 8, 3)), read(picture, (8, 8, 3)))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 100}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_every_usual_jpeg_is_accepted(mode: str, options: dict[str, int], rng: np.random.Generator) -> None:
    picture = Image.fromarray(noise(rng, 90, 70, 3)).convert(mode)
    assert read(encoded(picture, "JPEG", **options), (8, 8, 3)).shape == (8, 8, 3)


# Conversions


def reference(picture: Image.Image, background: int) -> Image.Image:
    """The whole picture at once on the background."""
    rgba = picture.convert("RGBA")
    flat = Image.new("RGB", rgba.size, (background, background, background))
    flat.paste(rgba, mask=rgba.getchannel("A"))
    return flat


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "1", "RGB"])
def test_strips_become_the_same_image_as_the_whole(mode: str, rng: np.random.Generator) -> None:
    colours = Image.fromarray(noise(rng, 1100, 1000, 4))
    picture = colours.convert("RGB").quantize(16) if mode in ("P", "PA") else colours.convert(mode)
    if mode == "PA":
        picture = picture.convert("PA")
    if mode in ("P", "L", "1", "RGB"):
        picture.info["transparency"] = (1, 2, 3) if mode == "RGB" else 0
    image = prepare(picture, 1100, 1000, 3, Preparation(background=31))
    np.testing.assert_array_equal(image, np.asarray(reference(picture, 31)))


@pytest.mark.parametrize("size", [(MAX_SIDE, 900), (900, MAX_SIDE), (1, MAX_SIDE), (8000, 7999)])
def test_deep_grey_of_any_proportions_is_converted_soon(size: tuple[int, int]) -> None:
    picture = Image.fromarray(np.full(size[::-1], 257 * 90, np.uint16))
    began = time.monotonic()
    assert read(encoded(picture, "PNG", compress_level=1), (8, 8, 1)).max() == 90
    assert time.monotonic() - began < SECONDS


def peak_memory(function: Callable[[], object]) -> int:
    """The most memory that a function takes at a time, in bytes."""
    process = Path("/proc/self")
    (process / "clear_refs").write_text("5")  # the peak begins again
    before, after = (re.compile(rf"{name}:\s+(\d+) kB") for name in ("VmRSS", "VmHWM"))
    held = before.search((process / "status").read_text())
    function()
    most = after.search((process / "status").read_text())
    assert held
    assert most
    return 1024 * (int(most[1]) - int(held[1]))


@in_linux
@pytest.mark.parametrize(
    ("mode", "kind", "most"),
    [
        ("RGB", "PNG", 5),
        ("RGBA", "PNG", 10),
        ("P", "PNG", 7),
        ("L", "PNG", 7),
        ("I;16", "PNG", 8),
        ("CMYK", "JPEG", 9),
    ],
)
def test_memory_is_bounded_by_the_pixels(mode: str, kind: str, most: int) -> None:
    """In bytes for each pixel, of which the picture itself takes 1 to 4."""
    size = (5000, 5000)
    colours = Image.new("RGB", size, (200, 10, 20))
    if mode == "I;16":
        picture = Image.fromarray(np.full(size, 60_000, np.uint16))
    else:
        picture = colours.quantize(4) if mode == "P" else colours.convert(mode)
    options = {"transparency": 0} if mode in ("P", "L") else {}
    data = encoded(picture, kind, **options)
    del picture, colours
    assert peak_memory(lambda: read(data, (8, 8, 3))) < (most + 1) * 5000 * 5000


# Metadata


@in_linux
@pytest.mark.parametrize(
    ("kind", "make"),
    [
        pytest.param(b"zTXt", lambda: b"k\0\0" + zlib.compress(bytes(10**8)), id="text"),
        pytest.param(b"iTXt", lambda: b"k\0\1\0\0\0" + zlib.compress(bytes(10**8)), id="utf-8"),
        pytest.param(b"iCCP", lambda: b"k\0\0" + zlib.compress(bytes(10**8)), id="profile"),
        pytest.param(b"tEXt", lambda: b"k\0" + bytes(10**5), id="texts"),
        pytest.param(b"eXIf", lambda: b"MM\0*\0\0\0\x08\xff\xff" + bytes(range(240)) * 3000, id="exif"),
    ],
)
def test_metadata_take_neither_long_nor_much_memory(kind: bytes, make: Callable[[], bytes]) -> None:
    data = png_with(kind, make(), times=1000 if kind == b"tEXt" else 1)

    def attempt() -> None:
        with contextlib.suppress(InvalidImageError):
            read(data, (8, 8, 1))

    began = time.monotonic()
    assert peak_memory(attempt) < 2**28
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_only_the_first_of_many_frames_is_decoded(kind: str) -> None:
    frames = [Image.new("RGB", (32, 32), (i % 251, 0, 0)) for i in range(1000)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    began = time.monotonic()
    assert read(data, (8, 8, 3)).shape == (8, 8, 3)
    assert time.monotonic() - began < SECONDS
