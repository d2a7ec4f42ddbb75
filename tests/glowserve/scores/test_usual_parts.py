"""The parts of an image beside those of the calibration images: how far, in which direction, and in which order."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from glowserve.scores.parts import Parts
from glowserve.scores.usual_parts import UsualParts
from tests.glowserve.scores.making import random_parts

D, L = 64, 3
ALL = {("log_prior", level) for level in (1, 2, 3)} | {("log_det", level) for level in (1, 2, 3)}
ALL |= {("complexity_bits_per_dim", 0), ("bits_per_dim", 0)}


def parts(rng: np.random.Generator, n: int) -> Parts:
    prior, det = rng.normal(-50, 5, (n, L)), rng.normal(20, 3, (n, L))
    return replace(
        random_parts(rng, n, levels=L),
        log_likelihood=prior.sum(axis=1) + det.sum(axis=1),
        log_prior=prior,
        log_det=det,
    )


def complexity(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(4, 0.5, n)


def test_a_deviation_is_the_distance_from_the_mean_in_standard_deviations(rng: np.random.Generator) -> None:
    calibration, images = parts(rng, 50), parts(rng, 4)
    found = UsualParts(calibration, complexity(rng, 50), D).compare(images, complexity(rng, 4))
    assert len(found) == 4
    for i, row in enumerate(found):
        assert {(part.name, part.level) for part in row} == ALL
        by_name = {(part.name, part.level): part for part in row}
        for level in (1, 2, 3):
            usual = calibration.log_det[:, level - 1]
            part = by_name["log_det", level]
            assert part.value == images.log_det[i, level - 1]
            assert part.deviation == pytest.approx((part.value - usual.mean()) / usual.std(ddof=1))
        bits = by_name["bits_per_dim", 0]
        assert bits.value == pytest.approx(-images.log_likelihood[i] / (D * math.log(2)))
        nats = calibration.log_likelihood
        likelier = (images.log_likelihood[i] - nats.mean()) / nats.std(ddof=1)
        assert bits.deviation == pytest.approx(-likelier)  # more bits: less likely


def test_the_farthest_from_usual_comes_first_in_either_direction(rng: np.random.Generator) -> None:
    images = parts(rng, 2)
    images.log_prior[0, 1] += 1000
    images.log_det[0, 2] -= 1000
    usual = UsualParts(parts(rng, 50), complexity(rng, 50), D)
    first, second = usual.compare(images, np.array([4.0, -100.0]))
    assert {(part.name, part.level) for part in first[:2]} == {("log_prior", 2), ("log_det", 3)}
    assert {part.level: part.deviation > 0 for part in first[:2]} == {2: True, 3: False}
    assert second[0].name == "complexity_bits_per_dim"
    for row in (first, second):
        distances = [abs(part.deviation) for part in row]
        assert distances == sorted(distances, reverse=True)


def test_parts_that_are_not_finite_are_the_farthest_and_the_others_are_what_they_are(
    rng: np.random.Generator,
) -> None:
    usual, images = UsualParts(parts(rng, 50), complexity(rng, 50), D), parts(rng, 3)
    sizes = complexity(rng, 3)
    expected = {(part.name, part.level): part for part in usual.compare(images, sizes)[0]}
    images.log_prior[0, 0], images.log_prior[1, 0], images.log_prior[2, 0] = np.nan, -np.inf, np.inf
    images.log_likelihood[:] = np.nan, -np.inf, np.inf
    for row, value in zip(usual.compare(images, sizes), (math.nan, -math.inf, math.inf), strict=True):
        assert {(part.name, part.level) for part in row[:2]} == {("log_prior", 1), ("bits_per_dim", 0)}
        found = {(part.name, part.level): part for part in row}
        np.testing.assert_equal(found["log_prior", 1].deviation, value)
        assert found["bits_per_dim", 0].deviation == math.inf  # as a score, whatever the graph returned
        assert all(math.isfinite(part.deviation) for part in row[2:])
    for part in usual.compare(images, sizes)[0][2:]:
        assert part == expected[part.name, part.level]


def test_a_part_that_is_the_same_of_every_image_can_be_compared(rng: np.random.Generator) -> None:
    """The log-determinants of additive couplings do not depend on the image."""
    calibration, images = parts(rng, 20), parts(rng, 2)
    calibration.log_det[:, 0] = 7
    images.log_det[:, 0] = 7, 8
    usual, other = UsualParts(calibration, complexity(rng, 20), D).compare(images, complexity(rng, 2))
    deviations = [
        {(part.name, part.level): part.deviation for part in row}["log_det", 1] for row in (usual, other)
    ]
    assert deviations[0] == 0
    assert math.isfinite(deviations[1])
    assert other[0].name == "log_det"


def test_the_complexity_is_left_out_where_it_cannot_be_compared(rng: np.random.Generator) -> None:
    (row,) = UsualParts(parts(rng, 20), None, D).compare(parts(rng, 1), complexity(rng, 1))
    assert {(part.name, part.level) for part in row} == ALL - {("complexity_bits_per_dim", 0)}
