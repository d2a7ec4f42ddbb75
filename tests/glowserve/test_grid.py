"""Grids of images."""

from __future__ import annotations

import numpy as np
import pytest

from glowserve.grid import grid
from tests.glowserve.pictures import noise


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
def test_a_grid_is_nearly_square_by_default(n: int, columns: int, rows: int) -> None:
    picture = grid(np.zeros((n, 4, 4, 3), np.uint8))

    assert picture.size == (5 * columns + 1, 5 * rows + 1)
    assert picture.mode == "RGB"


def test_a_grid_has_no_more_columns_than_images() -> None:
    assert grid(np.zeros((2, 4, 4, 1), np.uint8), columns=8).size == (11, 6)


def test_the_pixels_of_a_grid_can_be_enlarged(rng: np.random.Generator) -> None:
    images = noise(rng, 3, 4, 4, 3)

    small, large = grid(images), grid(images, scale=3)

    np.testing.assert_array_equal(np.asarray(large), np.asarray(small).repeat(3, 0).repeat(3, 1))


@pytest.mark.parametrize(
    ("shape", "columns", "rows"), [((8, 4, 39), 1, 8), ((8, 39, 4), 8, 1), ((6, 9, 19), 2, 3)]
)
def test_a_grid_of_wide_images_has_fewer_columns(shape: tuple[int, ...], columns: int, rows: int) -> None:
    _, height, width = shape

    assert grid(np.zeros((*shape, 1), np.uint8)).size == (columns * (width + 1) + 1, rows * (height + 1) + 1)


def test_a_grid_of_images_with_alpha_has_alpha() -> None:
    assert grid(np.zeros((2, 4, 4, 4), np.uint8)).mode == "RGBA"
    assert grid(np.zeros((2, 4, 4, 2), np.uint8)).mode == "LA"
