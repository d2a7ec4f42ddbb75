"""A score among those of the calibration images."""

from __future__ import annotations

import re

import numpy as np
import pytest

from glowserve.ui.histogram import HEIGHT, WIDTH, histogram

CALIBRATION = np.linspace(2.0, 3.0, 100)


@pytest.mark.parametrize(
    ("score", "mark", "beyond"),
    [
        (2.5, WIDTH / 2, ""),
        (2.0, 0.15 / 1.3 * WIDTH, ""),
        (3.14, 1.29 / 1.3 * WIDTH, ""),
        (9.0, WIDTH, "right"),
        (np.inf, WIDTH, "right"),
        (0.0, 0, "left"),
    ],
)
def test_the_mark_is_where_the_score_is_or_at_the_border(score: float, mark: float, beyond: str) -> None:
    drawn = histogram(CALIBRATION, score)
    assert drawn.mark == pytest.approx(mark, abs=0.1)
    assert drawn.beyond == beyond


@pytest.mark.parametrize("values", [CALIBRATION, np.array([2.5]), np.full(9, 1e-9), np.array([-4.0, 4e6])])
def test_every_bar_lies_in_the_drawing_and_the_highest_fills_it(values: np.ndarray) -> None:
    drawn = histogram(values, float(values[0]))
    heights = [float(number) for number in re.findall(r"V([\d.e-]+)", drawn.bars)]
    places = [float(number) for number in re.findall(r"H([\d.e-]+)", drawn.bars)]
    assert min(heights) == 0
    assert max(heights) <= HEIGHT
    assert 0 <= drawn.low_at < drawn.high_at <= WIDTH
    assert places == sorted(places)
    assert 0 <= drawn.mark <= WIDTH
