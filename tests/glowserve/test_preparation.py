"""The preparation of pictures: orientation, transparency, palettes, depth, colours and size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glowserve.images import (
    InvalidImageError,
    Preparation,
    encode_pil,
    encode_png,
    open_encoded,
    prepare,
    read_file,
)
from tests.glowserve.pictures import DEEP, GREYS, encoded, noise, png_with_depth, read

# Kinds of pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_the_exif_orientation_is_applied(kind: str, orientation: int) -> None:
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
def test_transparent_pixels_show_the_background(
    mode: str, channels: int, background: int, expected: int
) -> None:
    picture = Image.new("RGBA", (4, 4), (105, 105, 105, 128)).convert(mode)

    image = read(encoded(picture, "PNG"), (4, 4, channels), Preparation(background=background))

    np.testing.assert_allclose(image.astype(int), expected, rtol=0, atol=1)  # half of it and half of 105


def test_the_colour_of_an_invisible_pixel_does_not_matter(rng: np.random.Generator) -> None:
    pixels = noise(rng, 8, 8, 4)
    pixels[..., 3] = 0

    image = read(encoded(Image.fromarray(pixels), "PNG"), (4, 4, 3), Preparation(background=9))

    assert set(image.flatten()) == {9}


def test_the_colours_of_a_palette_are_used() -> None:
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


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_used(kind: str) -> None:
    frames = [Image.new("RGB", (6, 6), (grey, grey, grey)) for grey in (51, 255, 102)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert getattr(open_encoded(data), "n_frames", 1) == 3

    image = read(data, (6, 6, 3))

    np.testing.assert_allclose(image.astype(int), 51, rtol=0, atol=2)  # WebP is not exact


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "YCbCr", "P", "HSV"])
def test_colour_becomes_grey_by_its_luminance(mode: str) -> None:
    green = Image.new("RGB", (4, 4), (0, 255, 0)).convert(mode)

    image = prepare(green, 4, 4, 1, Preparation())

    np.testing.assert_allclose(image.astype(int), 150, rtol=0, atol=2)


def test_grey_becomes_three_equal_channels(rng: np.random.Generator) -> None:
    pixels = noise(rng, 5, 6, 1)

    np.testing.assert_array_equal(read(encode_png(pixels), (5, 6, 3)), pixels.repeat(3, axis=2))


def test_an_unreadable_exif_is_ignored(rng: np.random.Generator) -> None:
    pixels = noise(rng, 8, 8, 3)
    data = encoded(Image.fromarray(pixels), "PNG", exif=b"Exif\x00\x00nonsense")
    np.testing.assert_array_equal(read(data, (8, 8, 3)), pixels)


def test_floating_point_values_are_refused(tmp_path: Path) -> None:
    picture = Image.fromarray(DEEP.astype(np.float32) / 65535)
    picture.save(tmp_path / "a.tiff")
    with pytest.raises(InvalidImageError, match="floating-point values"):
        read((tmp_path / "a.tiff").read_bytes(), (8, 8, 1))
    with pytest.raises(InvalidImageError, match=r"a\.tiff: it holds floating-point values"):
        read_file(tmp_path / "a.tiff")


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


def test_a_file_its_bytes_and_its_pillow_image_become_the_same_image(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    data = encoded(Image.fromarray(noise(rng, 40, 30, 4)), "PNG")
    (tmp_path / "a.png").write_bytes(data)

    expected = read(data, (8, 8, 3))

    np.testing.assert_array_equal(read(read_file(tmp_path / "a.png"), (8, 8, 3)), expected)
    np.testing.assert_array_equal(read(encode_pil(open_encoded(data)), (8, 8, 3)), expected)
    np.testing.assert_array_equal(prepare(open_encoded(data), 8, 8, 3, Preparation()), expected)


def test_unknown_values_of_a_preparation_are_refused() -> None:
    with pytest.raises(ValueError, match=r"filter is 'cubic'; it must be one of nearest, .*bicubic"):
        Preparation(filter="cubic")
    for background in (-1, 256):
        with pytest.raises(ValueError, match=f"background is {background}; it must lie in 0 to 255"):
            Preparation(background=background)
    with pytest.raises(ValueError, match="fit is 'fill'; it must be one of crop, pad"):
        Preparation(fit="fill")
    with pytest.raises(ValueError, match="bits_used is 14; it must be one of 16, 12, 10"):
        Preparation(bits_used=14)


# Padding


def test_a_padded_picture_is_whole_and_in_the_middle() -> None:
    pixels = np.full((8, 24, 1), 90, np.uint8)
    padding = Preparation(fit="pad", background=7)

    wide = read(encode_png(pixels), (8, 8, 1), padding)[..., 0]
    tall = read(encode_png(pixels.transpose(1, 0, 2)), (8, 8, 1), padding)[..., 0]

    rows = [7, 7, 90, 90, 90, 7, 7, 7]  # 8 * 8 / 24 rows, rounded
    assert wide.tolist() == [[row] * 8 for row in rows]
    np.testing.assert_array_equal(tall, wide.T)


@pytest.mark.parametrize("size", [(1, 65_535), (65_535, 1), (1, 1), (3, 5)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("shape", [(2, 64), (48, 160), (64, 2)])
def test_a_picture_of_extreme_proportions_fits(
    size: tuple[int, int], fit: str, shape: tuple[int, int]
) -> None:
    image = read(
        encode_png(np.full((*size, 3), 90, np.uint8)), (*shape, 3), Preparation(fit=fit, background=0)
    )

    assert set(image.flatten()) <= {0, 90}
    assert (image == 90).any()


# Alpha as data


@pytest.mark.parametrize(("mode", "channels"), [("LA", 2), ("RGBA", 4)])
def test_alpha_is_a_channel_of_a_model_that_has_it(
    mode: str, channels: int, rng: np.random.Generator
) -> None:
    pixels = noise(rng, 6, 5, channels)
    assert Image.fromarray(pixels).mode == mode

    np.testing.assert_array_equal(read(encode_png(pixels), (6, 5, channels)), pixels)


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_pixels_without_alpha_are_opaque(channels: int, mode: str) -> None:
    image = read(encoded(Image.new(mode, (4, 4), 1), "PNG"), (4, 4, channels))

    assert set(image[..., -1].flatten()) == {255}


def test_the_padding_of_a_model_with_alpha_is_transparent() -> None:
    image = read(
        encode_png(np.full((4, 8, 4), 200, np.uint8)), (8, 8, 4), Preparation(fit="pad", background=9)
    )

    assert image[0, 0].tolist() == [9, 9, 9, 0]
    assert image[4, 4].tolist() == [200, 200, 200, 200]


def test_a_transparent_value_of_deep_grey_has_alpha_0() -> None:
    image = read(png_with_depth(DEEP, transparent=257), (16, 16, 2))

    assert (image[..., 1] == 0).sum() == 1
    assert image[0, 1, 1] == 0
