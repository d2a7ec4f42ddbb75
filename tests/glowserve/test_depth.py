"""16 bits per value: what is white, what is transparent, and what cannot be known and is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glowserve.images import InvalidImageError, Preparation, encode_pil, open_encoded, read_file
from tests.glowserve.pictures import DEEP, deep_png, encoded, png_with_depth, read

TWELVE_BITS = (DEEP.astype(np.uint32) * 4095 // 65535).astype(np.uint16)
"""The grey values of a camera of 12 bits, stored in 16 as they are."""
GREY, COLOUR, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 4, 6


def opaque(channels: int, values: np.ndarray) -> np.ndarray:
    """The values in every channel; of an even number of channels, the last is opaque."""
    image = np.repeat(values[..., None], channels, axis=2)
    if channels % 2 == 0:
        image[..., -1] = 65535
    return image


@pytest.mark.parametrize(
    ("colour_type", "channels"), [(GREY, 1), (COLOUR, 3), (GREY_ALPHA, 2), (COLOUR_ALPHA, 4)]
)
def test_twelve_bits_in_sixteen_are_refused_and_not_read_as_nearly_black(
    colour_type: int, channels: int
) -> None:
    full = deep_png(opaque(channels, DEEP), colour_type=colour_type)
    assert read(full, (16, 16, 3)).max() == 255

    dark = deep_png(opaque(channels, TWELVE_BITS), colour_type=colour_type)
    with pytest.raises(
        InvalidImageError, match=r"16-bit values are all below 4096, so nearly black: .*65535"
    ):
        read(dark, (16, 16, 3))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [10, 12])
def test_the_brightest_value_decides(kind: str, bits: int) -> None:
    values = np.full((6, 6), 7, np.uint16)
    values[3, 3] = 2**bits - 1
    with pytest.raises(InvalidImageError, match="below 4096"):
        read(encoded(Image.fromarray(values), kind), (6, 6, 1))
    values[3, 3] = 4096
    assert read(encoded(Image.fromarray(values), kind), (6, 6, 1)).max() == 16


@pytest.mark.parametrize(("colour_type", "channels"), [(GREY, 1), (COLOUR, 3), (COLOUR_ALPHA, 4)])
def test_a_black_picture_is_black_however_many_bits_it_has(colour_type: int, channels: int) -> None:
    black = deep_png(opaque(channels, np.zeros((4, 4), np.uint16)), colour_type=colour_type)
    assert read(black, (4, 4, 1)).max() == 0


def test_eight_bits_may_be_dark() -> None:
    assert read(encoded(Image.new("RGB", (4, 4), (3, 2, 1)), "PNG"), (4, 4, 3)).max() == 3


def test_a_client_sends_sixteen_bits_as_they_are_since_the_model_says_which_it_uses(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    Image.fromarray(TWELVE_BITS.astype(np.int32)).save(path)

    sent = read_file(path)

    np.testing.assert_array_equal(np.asarray(open_encoded(sent)), TWELVE_BITS)
    with pytest.raises(InvalidImageError, match="its 16-bit values are all below 4096"):
        read(sent, (16, 16, 1))
    twelve = Preparation(bits_used=12)
    np.testing.assert_array_equal(
        read(sent, (16, 16, 1), twelve), read(path.read_bytes(), (16, 16, 1), twelve)
    )


# Bits that a data set uses


@pytest.mark.parametrize("bits", [12, 10])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_white_is_the_largest_value_of_the_bits_used(bits: int, kind: str) -> None:
    values = np.rint(np.arange(256) * (2**bits - 1) / 255).astype(np.uint16).reshape(16, 16)

    image = read(encoded(Image.fromarray(values), kind), (16, 16, 1), Preparation(bits_used=bits))

    np.testing.assert_array_equal(image[..., 0], np.arange(256).reshape(16, 16))


def test_every_value_of_twelve_bits_is_rounded_to_the_nearest_grey_value() -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)

    image = read(encoded(Image.fromarray(values), "PNG"), (64, 64, 1), Preparation(bits_used=12))

    np.testing.assert_array_equal(image[..., 0], np.rint(values / 4095 * 255))


def test_a_dark_picture_of_twelve_bits_stays_dark() -> None:
    """The rule is the data set's: no picture is stretched by its own values."""
    data = encoded(Image.fromarray(np.full((4, 4), 100, np.uint16)), "PNG")

    assert set(read(data, (4, 4, 1), Preparation(bits_used=12)).flatten()) == {6}


def test_values_beyond_the_bits_used_are_refused() -> None:
    data = encoded(Image.fromarray(np.full((4, 4), 4096, np.uint16)), "PNG")

    with pytest.raises(
        InvalidImageError, match="go up to 4096, and the data has 12 bits, up to 4095; scale them"
    ):
        read(data, (4, 4, 1), Preparation(bits_used=12))


@pytest.mark.parametrize(("colour_type", "channels"), [(COLOUR, 3), (GREY_ALPHA, 2), (COLOUR_ALPHA, 4)])
def test_deep_colours_are_refused_if_some_bits_are_unused(colour_type: int, channels: int) -> None:
    data = deep_png(opaque(channels, TWELVE_BITS), colour_type=colour_type)

    with pytest.raises(
        InvalidImageError, match="12 of 16 bits are read of grey values alone; save it with 8 bits"
    ):
        read(data, (16, 16, 3), Preparation(bits_used=12))


def test_eight_bits_are_read_as_ever_whatever_bits_are_used() -> None:
    data = encoded(Image.fromarray(DEEP.astype(np.uint8)), "PNG")

    np.testing.assert_array_equal(read(data, (16, 16, 1), Preparation(bits_used=10)), read(data, (16, 16, 1)))


@pytest.mark.parametrize("values", [[-5, 0, 65535], [0, 7, 65536], [0, 7, 2**31 - 1]])
def test_grey_values_beyond_sixteen_bits_are_refused(values: list[int], tmp_path: Path) -> None:
    data = encoded(Image.fromarray(np.array([values], np.int32)), "TIFF")
    with pytest.raises(
        InvalidImageError, match=f"from {values[0]} to {values[2]}, and what is white is unknown"
    ):
        read(data, (1, 3, 1))


def test_a_grey_value_of_sixteen_bits_may_be_transparent() -> None:
    data = png_with_depth(DEEP, transparent=257 * 40)
    image = read(data, (16, 16, 1))[..., 0].flatten()
    assert image[40] == 255
    assert np.delete(image, 40).tolist() == np.delete(np.arange(256), 40).tolist()

    sent = encode_pil(open_encoded(data))
    np.testing.assert_array_equal(read(sent, (16, 16, 1)), read(data, (16, 16, 1)))
