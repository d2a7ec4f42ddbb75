"""The one way in which a picture is read."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glowserve.images import (
    ENCODED_FORMATS,
    FILE_FORMATS,
    FILE_SUFFIXES,
    InvalidImageError,
    Preparation,
    UInt8Array,
    decode_png,
    encode_pil,
    encode_png,
    grid,
    open_encoded,
    prepare,
    prepare_encoded,
    read_file,
    to_pil,
)

# Every number of 16 bits that is a grey value of 8 bits exactly.
DEEP = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(rng: np.random.Generator, *shape: int) -> UInt8Array:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def read(data: bytes, shape: tuple[int, int, int], preparation: Preparation | None = None) -> UInt8Array:
    return prepare_encoded(data, *shape, preparation or Preparation())


def png_header(width: int, height: int) -> bytes:
    """A PNG file that promises so many grey pixels and holds none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


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


@pytest.mark.parametrize("suffix", sorted(FILE_SUFFIXES))
def test_every_suffix_belongs_to_a_format_that_is_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(GREYS[..., 0]).save(path)

    image = read(path.read_bytes(), (16, 16, 1))

    np.testing.assert_allclose(image.astype(int), GREYS, rtol=0, atol=8)  # JPEG is not exact


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


# Bounds


def test_a_picture_of_too_many_pixels_is_refused_by_its_header() -> None:
    with pytest.raises(InvalidImageError, match="has 3000 x 2000 pixels; at most 5999999 are accepted"):
        open_encoded(png_header(3000, 2000), max_pixels=5_999_999)

    assert open_encoded(png_header(3000, 2000), max_pixels=6_000_000).size == (3000, 2000)


def test_a_bomb_is_refused_by_its_header_whatever_the_bound() -> None:
    bomb = png_header(60_000, 60_000)
    assert len(bomb) < 100

    for bound in (None, 1000, 10**12):
        with pytest.raises(InvalidImageError, match="the picture is too large"):
            prepare_encoded(bomb, 8, 8, 1, Preparation(), max_pixels=bound)


# Kinds of pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_picture_is_turned_as_its_exif_says(kind: str, orientation: int) -> None:
    stored = np.zeros((16, 32), np.uint8)
    stored[:8, :16], stored[8:, 16:] = 80, 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: stored.T[:, ::-1],
        7: stored.T[::-1, ::-1],
        8: stored.T[::-1],
    }[orientation]
    options = {"lossless": True} if kind == "WEBP" else {}

    image = read(encoded(Image.fromarray(stored), kind, exif=exif, **options), (*upright.shape, 1))

    np.testing.assert_allclose(image[..., 0].astype(int), upright, rtol=0, atol=3)


@pytest.mark.parametrize(("background", "expected"), [(255, 180), (0, 53), (100, 103)])
@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 3), ("LA", 1), ("RGBA", 1), ("LA", 3)])
def test_what_is_transparent_lets_the_background_through(
    mode: str, channels: int, background: int, expected: int
) -> None:
    picture = Image.new("RGBA", (4, 4), (105, 105, 105, 128)).convert(mode)

    image = read(encoded(picture, "PNG"), (4, 4, channels), Preparation(background=background))

    np.testing.assert_allclose(image.astype(int), expected, rtol=0, atol=1)  # half of it and half of 105


def test_the_colour_of_a_pixel_that_cannot_be_seen_does_not_matter(rng: np.random.Generator) -> None:
    pixels = noise(rng, 8, 8, 4)
    pixels[..., 3] = 0

    image = read(encoded(Image.fromarray(pixels), "PNG"), (4, 4, 3), Preparation(background=9))

    assert set(image.flatten()) == {9}


def test_a_palette_is_looked_up() -> None:
    picture = Image.new("P", (4, 2), 1)
    picture.putpalette([0, 0, 0, 10, 200, 30])

    image = read(encoded(picture, "PNG"), (2, 4, 3))

    np.testing.assert_array_equal(image, np.broadcast_to([10, 200, 30], (2, 4, 3)))


def test_a_palette_may_be_transparent() -> None:
    picture = Image.new("P", (4, 2), 1)
    picture.putpalette([0, 0, 0, 10, 200, 30])

    image = read(encoded(picture, "PNG", transparency=1), (2, 4, 3), Preparation(background=77))

    assert set(image.flatten()) == {77}


@pytest.mark.parametrize("mode", ["L", "1"])
def test_one_grey_value_may_be_transparent(mode: str) -> None:
    picture = Image.new(mode, (4, 4), 0)

    assert set(read(encoded(picture, "PNG"), (4, 4, 1)).flatten()) == {0}
    assert set(read(encoded(picture, "PNG", transparency=0), (4, 4, 1)).flatten()) == {255}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encoded(Image.fromarray(DEEP), "PNG"), id="16-bit-png"),
        pytest.param(encoded(Image.fromarray(DEEP), "TIFF"), id="16-bit-tiff"),
        pytest.param(
            encoded(Image.frombytes("I;16B", (16, 16), DEEP.astype(">u2").tobytes()), "TIFF"),
            id="16-bit-big-endian-tiff",
        ),
        pytest.param(encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), id="32-bit-tiff"),
    ],
)
def test_sixteen_bits_of_grey_become_eight(data: bytes, channels: int) -> None:
    np.testing.assert_array_equal(read(data, (16, 16, channels)), GREYS.repeat(channels, axis=2))


def test_sixteen_bits_are_rounded_to_the_nearest_grey_value() -> None:
    deep = np.array([[0, 128, 129, 256, 257, 65406, 65407, 65535]], np.uint16)

    image = read(encoded(Image.fromarray(deep), "PNG"), (1, 8, 1))

    assert image.flatten().tolist() == [0, 0, 1, 1, 1, 254, 255, 255]


def test_grey_values_beyond_sixteen_bits_are_clipped() -> None:
    deep = np.array([[-5, 0, 65535, 10**6]], np.int32)

    assert read(encoded(Image.fromarray(deep), "TIFF"), (1, 4, 1)).flatten().tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_only_the_first_frame_of_an_animation_counts(kind: str) -> None:
    frames = [Image.new("RGB", (6, 6), (grey, grey, grey)) for grey in (51, 255, 102)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert getattr(open_encoded(data), "n_frames", 1) == 3

    image = read(data, (6, 6, 3))

    np.testing.assert_allclose(image.astype(int), 51, rtol=0, atol=2)  # WebP is not exact


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "YCbCr", "P", "HSV"])
def test_colour_becomes_grey_by_how_bright_it_looks(mode: str) -> None:
    green = Image.new("RGB", (4, 4), (0, 255, 0)).convert(mode)

    image = prepare(green, 4, 4, 1, Preparation())

    np.testing.assert_allclose(image.astype(int), 150, rtol=0, atol=2)


def test_grey_becomes_three_channels_alike(rng: np.random.Generator) -> None:
    pixels = noise(rng, 5, 6, 1)

    np.testing.assert_array_equal(read(encode_png(pixels), (5, 6, 3)), pixels.repeat(3, axis=2))


# Size


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_the_right_size_stays_as_it_is(channels: int, rng: np.random.Generator) -> None:
    pixels = noise(rng, 5, 7, channels)

    np.testing.assert_array_equal(read(encode_png(pixels), (5, 7, channels)), pixels)


@pytest.mark.parametrize("wide", [True, False])
def test_the_middle_of_the_longer_side_is_taken(wide: bool) -> None:
    pixels = np.zeros((8, 24, 1), np.uint8)
    pixels[:, 8:16] = 200
    pixels = pixels if wide else pixels.transpose(1, 0, 2)

    image = read(encode_png(pixels), (8, 8, 1))

    np.testing.assert_array_equal(image, np.full((8, 8, 1), 200, np.uint8))


def test_the_shape_is_rows_then_columns(rng: np.random.Generator) -> None:
    assert read(encode_png(noise(rng, 40, 30, 3)), (4, 6, 3)).shape == (4, 6, 3)


@pytest.mark.parametrize("filter_", [name.lower() for name in Image.Resampling.__members__])
def test_a_picture_is_resized_with_the_filter_of_the_preparation(
    filter_: str, rng: np.random.Generator
) -> None:
    pixels = noise(rng, 32, 32, 1)

    image = read(encode_png(pixels), (8, 8, 1), Preparation(filter=filter_))

    expected = Image.fromarray(pixels[..., 0]).resize((8, 8), Image.Resampling[filter_.upper()])
    np.testing.assert_array_equal(image[..., 0], np.asarray(expected))


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1), (3, 5)])
def test_a_picture_of_any_size_fits(size: tuple[int, int]) -> None:
    image = read(encode_png(np.full((*size, 3), 90, np.uint8)), (8, 8, 3))

    np.testing.assert_array_equal(image, np.full((8, 8, 3), 90, np.uint8))


def test_a_prepared_image_is_the_same_from_a_path_from_bytes_and_from_pillow(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    data = encoded(Image.fromarray(noise(rng, 40, 30, 4)), "PNG")
    (tmp_path / "a.png").write_bytes(data)

    expected = read(data, (8, 8, 3))

    np.testing.assert_array_equal(read(read_file(tmp_path / "a.png"), (8, 8, 3)), expected)
    np.testing.assert_array_equal(read(encode_pil(open_encoded(data)), (8, 8, 3)), expected)
    np.testing.assert_array_equal(prepare(open_encoded(data), 8, 8, 3, Preparation()), expected)


def test_a_preparation_of_unknown_values_is_refused() -> None:
    with pytest.raises(ValueError, match=r"filter is 'cubic'; it must be one of nearest, .*bicubic"):
        Preparation(filter="cubic")
    for background in (-1, 256):
        with pytest.raises(ValueError, match=f"background is {background}; it must lie in 0 to 255"):
            Preparation(background=background)


# Writing


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_file_gives_back_the_image_it_was_made_of(channels: int, rng: np.random.Generator) -> None:
    image = noise(rng, 5, 9, channels)

    data = encode_png(image)

    assert data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(decode_png(data), image)
    assert to_pil(image).mode == {1: "L", 3: "RGB"}[channels]


@pytest.mark.parametrize("kind", ENCODED_FORMATS)
def test_a_file_that_the_service_reads_is_sent_as_it_is(
    kind: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    data = encoded(Image.fromarray(noise(rng, 6, 6, 3)), kind)
    (tmp_path / "picture").write_bytes(data)

    assert read_file(tmp_path / "picture") == data


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "I;16B"])
def test_a_file_that_the_service_does_not_read_becomes_a_png_that_is_prepared_alike(
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


def test_a_turned_picture_is_upright_once_it_is_a_png() -> None:
    stored = np.zeros((4, 8), np.uint8)
    stored[:, 6:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = open_encoded(encoded(Image.fromarray(stored), "TIFF", exif=exif))

    image = read(encode_pil(turned), (8, 4, 1))

    np.testing.assert_array_equal(image[..., 0], stored.T[:, ::-1])  # and not turned twice


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM"])
def test_a_damaged_file_is_named(kind: str, tmp_path: Path, rng: np.random.Generator) -> None:
    data = encoded(Image.fromarray(noise(rng, 40, 40, 3)), kind)
    for name, content in {"half": data[: len(data) // 2], "foreign": b"something else"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidImageError, match=f"^{tmp_path / name}: "):
            read_file(tmp_path / name)


def test_a_file_of_too_many_pixels_is_named(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png_header(300, 200))

    with pytest.raises(
        InvalidImageError, match=r"large\.png: the picture has 300 x 200 pixels; at most 50000"
    ):
        read_file(tmp_path / "large.png", max_pixels=50_000)


# A grid


def test_a_grid_is_filled_row_by_row() -> None:
    images = np.stack([np.full((2, 3, 1), grey, np.uint8) for grey in (10, 20, 30, 40, 50)])

    picture = np.asarray(grid(images, columns=3))

    white = [255] * 13
    assert picture.tolist() == [
        white,
        *[[255, 10, 10, 10, 255, 20, 20, 20, 255, 30, 30, 30, 255]] * 2,
        white,
        *[[255, 40, 40, 40, 255, 50, 50, 50, 255, 255, 255, 255, 255]] * 2,
        white,
    ]


@pytest.mark.parametrize(("n", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (4, 2, 2), (5, 3, 2), (10, 4, 3)])
def test_a_grid_is_about_square_if_nothing_is_said(n: int, columns: int, rows: int) -> None:
    picture = grid(np.zeros((n, 4, 4, 3), np.uint8), gap=0)

    assert picture.size == (4 * columns, 4 * rows)
    assert picture.mode == "RGB"


def test_a_grid_has_no_more_columns_than_images() -> None:
    assert grid(np.zeros((2, 4, 4, 1), np.uint8), columns=8, gap=0).size == (8, 4)


def test_the_pixels_of_a_grid_can_be_enlarged(rng: np.random.Generator) -> None:
    images = noise(rng, 3, 4, 4, 3)

    small, large = grid(images, gap=2), grid(images, gap=2, scale=3)

    np.testing.assert_array_equal(np.asarray(large), np.asarray(small).repeat(3, 0).repeat(3, 1))


def test_floating_point_values_are_refused_as_nobody_knows_their_range(tmp_path: Path) -> None:
    picture = Image.fromarray(DEEP.astype(np.float32) / 65535)
    picture.save(tmp_path / "a.tiff")
    with pytest.raises(InvalidImageError, match="floating-point values"):
        read((tmp_path / "a.tiff").read_bytes(), (8, 8, 1))
    with pytest.raises(InvalidImageError, match=r"a\.tiff: it holds floating-point values"):
        read_file(tmp_path / "a.tiff")


def test_a_picture_whose_exif_cannot_be_read_is_read_without(rng: np.random.Generator) -> None:
    pixels = noise(rng, 8, 8, 3)
    data = encoded(Image.fromarray(pixels), "PNG", exif=b"Exif\x00\x00nonsense")
    np.testing.assert_array_equal(read(data, (8, 8, 3)), pixels)
