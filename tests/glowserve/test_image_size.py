"""Sizes of images."""

from __future__ import annotations

from typing import Any

import pytest

from glowserve.image_size import ImageSize


@pytest.mark.parametrize("given", ["48x160", "48 x 160", [48, 160], (48, 160), ImageSize(48, 160)])
def test_a_size_is_height_and_width(given: Any) -> None:
    size = ImageSize.of(given)

    assert (size.height, size.width, size.pixels, size.halvings) == (48, 160, 7680, 4)
    assert (str(size), size.stored) == ("48 x 160", [48, 160])
    assert size.halved(4) == ImageSize(3, 10)


@pytest.mark.parametrize("given", [28, "28", "28x28"])
def test_a_square_is_one_number(given: Any) -> None:
    assert ImageSize.of(given) == ImageSize(28, 28)
    assert ImageSize.of(given).stored == 28


@pytest.mark.parametrize(
    "given",
    [
        "",
        "x",
        "8x",
        "x8",
        "8x8x8",
        "-8",
        "8.0",
        "8X8",
        "\u0668",
        "9" * 10,
        [8],
        [8, 8, 8],
        [8, "8"],
        True,
        None,
        8.0,
    ],
)
def test_other_values_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="is no image size"):
        ImageSize.of(given)


@pytest.mark.parametrize(
    ("size", "multiple", "nearest"),
    [
        ("30x64", 8, ["24 x 64", "32 x 64"]),
        ("2x2", 4, ["4 x 4"]),
        ("22x46", 2, ["22 x 46"]),
        ("0", 4, ["4 x 4"]),
    ],
)
def test_the_nearest_sizes_are_positive_multiples(size: str, multiple: int, nearest: list[str]) -> None:
    assert [str(each) for each in ImageSize.of(size).nearest(multiple)] == nearest
