"""Heat maps: colours, sizes, and what is not finite."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from glowserve.heat_map import LIMIT, heat_map


def _panels(drawn: Image.Image, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture and the map beside it, without what surrounds them, [S, S, 3] each."""
    pixels = np.asarray(drawn, np.int64)
    side = (drawn.width - 3 * 8) // 2
    assert side % size == 0
    left, right = pixels[8 : 8 + side, 8 : 8 + side], pixels[8 : 8 + side, 16 + side : 16 + 2 * side]
    return left, right


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 8, 28, 32, 64, 300])
def test_the_picture_is_enlarged_beside_a_map_of_its_size(
    size: int, channels: int, rng: np.random.Generator
) -> None:
    image = rng.integers(0, 256, (size, size, channels), np.uint8)
    drawn = heat_map(image, np.zeros((size, size), np.float32))
    assert drawn.mode == "RGB"
    left, right = _panels(drawn, size)
    factor = len(left) // size
    assert len(left) > 190  # legible
    np.testing.assert_array_equal(left[::factor, ::factor], np.broadcast_to(image, (size, size, 3)))
    # Nothing deviates: the map is grey.
    assert (right == right[:, :, :1]).all()


def test_red_is_too_unlikely_and_blue_too_likely_and_more_of_it_is_farther() -> None:
    deviations = np.zeros((8, 8), np.float32)
    distances = [0.25, 1, 4, LIMIT]
    deviations[0, :4], deviations[1, :4] = -np.array(distances), distances
    _, right = _panels(heat_map(np.full((8, 8, 1), 128, np.uint8), deviations), 8)
    places = right[16::32, 16::32]  # in the middle of each
    redness = places[:, :, 0] - places[:, :, 2]
    assert (np.diff(redness[0, :4]) > 10).all()
    assert (np.diff(redness[1, :4]) < -10).all()
    assert redness[0, 0] > 0 > redness[1, 0]
    assert redness[2:].any() == 0


def test_white_stays_white_and_black_is_grey_where_nothing_deviates() -> None:
    image = np.zeros((2, 2, 1), np.uint8)
    image[0] = 255
    _, right = _panels(heat_map(image, np.zeros((2, 2), np.float32)), 2)
    assert (right[0] == 255).all()
    assert (right[-1] == 160).all()


def test_deviations_beyond_the_limit_have_the_colour_of_the_limit() -> None:
    image = np.full((2, 2, 3), 200, np.uint8)
    deviations = np.array([[-LIMIT, -1e30], [LIMIT, 3e38]], np.float32)
    _, right = _panels(heat_map(image, deviations), 2)
    for row in (0, -1):
        np.testing.assert_array_equal(right[row, 0], right[row, -1])


def test_what_is_not_finite_is_magenta() -> None:
    deviations = np.array([[np.nan, np.inf], [-np.inf, 0]], np.float32)
    _, right = _panels(heat_map(np.zeros((2, 2, 1), np.uint8), deviations), 2)
    for row, column in ((0, 0), (0, -1), (-1, 0)):
        assert right[row, column].tolist() == [255, 0, 255]
    assert right[-1, -1].tolist() != [255, 0, 255]


def test_the_legend_has_both_colours_and_words() -> None:
    drawn = np.asarray(heat_map(np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8))), np.int64)
    legend = drawn[8 + 256 + 8 :]
    redness = legend[:, :, 0] - legend[:, :, 2]
    assert redness.max() > 100
    assert redness.min() < -80
    assert (legend[16:].min(axis=2) < 100).sum() > 50  # the numbers
