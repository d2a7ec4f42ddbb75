"""Reading and writing pictures: formats, damaged files, PNG files. test_preparation.py has the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glowserve.images import (
    ENCODED_FORMATS,
    FILE_FORMATS,
    InvalidImageError,
    check_encoded,
    decode_png,
    encode_pil,
    encode_png,
    open_encoded,
    read_file,
    to_pil,
)
from tests.glowserve.pictures import DEEP, encoded, noise, png_header, read

# Formats


@pytest.mark.parametrize("kind", FILE_FORMATS)
def test_every_format_is_read(kind: str, rng: np.random.Generator) -> None:
    pixels = noise(rng, 9, 7, 3) if kind != "GIF" else np.full((9, 7, 3), 51, np.uint8)  # a palette's colour
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})

    image = read(encoded(Image.fromarray(pixels), kind, **lossless), (9, 7, 3))

    assert image.dtype == np.uint8
    assert image.shape == (9, 7, 3)
    tolerance = 8 if kind == "JPEG" else 0
    np.testing.assert_allclose(image.astype(int), pixels, rtol=0, atol=tolerance)


def test_a_format_that_is_not_accepted_is_refused_with_those_that_are() -> None:
    bitmap = encoded(Image.new("L", (4, 4)), "BMP")
    assert open_encoded(bitmap).format == "BMP"

    with pytest.raises(
        InvalidImageError, match=f"{len(bitmap)} bytes are not .*; accepted are PNG, JPEG, WEBP$"
    ):
        open_encoded(bitmap, formats=ENCODED_FORMATS)


@pytest.mark.parametrize(
    "data", [b"", b"x", b"certainly no picture", b"\x89PNG\r\n\x1a\n", bytes(1000), b"%PDF-1.4"]
)
def test_bytes_that_are_no_picture_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidImageError, match=f"^{len(data)} bytes are not a picture .*; accepted are PNG"):
        read(data, (4, 4, 1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF"])
def test_a_picture_that_ends_early_is_refused(kind: str, rng: np.random.Generator) -> None:
    data = encoded(Image.fromarray(noise(rng, 64, 64, 3)), kind)
    assert read(data, (64, 64, 3)).shape == (64, 64, 3)

    with pytest.raises(InvalidImageError):
        read(data[: len(data) // 2], (64, 64, 3))


def test_a_png_with_a_damaged_byte_is_refused(rng: np.random.Generator) -> None:
    data = bytearray(encode_png(noise(rng, 64, 64, 3)))
    data[len(data) // 2] ^= 0xFF

    with pytest.raises(InvalidImageError, match="the picture is damaged"):
        read(bytes(data), (64, 64, 3))


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    bomb = png_header(60_000, 60_000)
    assert len(bomb) < 100
    with pytest.raises(InvalidImageError, match="the picture is too large"):
        open_encoded(bomb)


def test_only_the_header_is_read_when_a_picture_is_opened() -> None:
    assert open_encoded(png_header(3000, 2000)).size == (3000, 2000)


def test_the_pixels_of_a_picture_are_checked(rng: np.random.Generator) -> None:
    data = encode_png(noise(rng, 64, 64, 3))
    check_encoded(data)
    with pytest.raises(InvalidImageError, match="the picture is damaged"):
        check_encoded(data[: len(data) // 2])
    with pytest.raises(InvalidImageError, match="are not a picture"):
        check_encoded(b"text")


# Writing


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_file_decodes_to_its_image(channels: int, rng: np.random.Generator) -> None:
    image = noise(rng, 5, 9, channels)

    data = encode_png(image)

    assert data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(decode_png(data), image)
    assert to_pil(image).mode == {1: "L", 3: "RGB"}[channels]


@pytest.mark.parametrize("kind", ENCODED_FORMATS)
def test_a_file_in_a_format_of_the_service_stays_as_it_is(
    kind: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    data = encoded(Image.fromarray(noise(rng, 6, 6, 3)), kind)
    (tmp_path / "picture").write_bytes(data)

    assert read_file(tmp_path / "picture") == data


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "I;16B"])
def test_a_file_in_another_format_becomes_a_png_with_the_same_image(
    mode: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    pixels = Image.fromarray(noise(rng, 12, 10, 4))
    if mode == "I":
        picture = Image.fromarray(DEEP.astype(np.int32))
    elif mode.startswith("I;16"):
        order = ">u2" if mode.endswith("B") else "<u2"
        picture = Image.frombytes(mode, (16, 16), DEEP.astype(order).tobytes())
    else:
        picture = (pixels.convert("RGB") if mode == "CMYK" else pixels).convert(mode)
    path = tmp_path / "a.tiff"
    picture.save(path)
    assert open_encoded(path.read_bytes()).mode == mode

    data = read_file(path)

    assert open_encoded(data, formats=("PNG",)).format == "PNG"
    np.testing.assert_array_equal(read(data, (8, 8, 3)), read(path.read_bytes(), (8, 8, 3)))


def test_the_orientation_is_applied_once_when_a_picture_becomes_a_png() -> None:
    stored = np.zeros((4, 8), np.uint8)
    stored[:, 6:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = open_encoded(encoded(Image.fromarray(stored), "TIFF", exif=exif))

    image = read(encode_pil(turned), (8, 4, 1))

    np.testing.assert_array_equal(image[..., 0], stored.T[:, ::-1])


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM"])
def test_a_damaged_file_is_named(kind: str, tmp_path: Path, rng: np.random.Generator) -> None:
    data = encoded(Image.fromarray(noise(rng, 40, 40, 3)), kind)
    for name, content in {"half": data[: len(data) // 2], "foreign": b"something else"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidImageError, match=f"^{tmp_path / name}: "):
            read_file(tmp_path / name)
