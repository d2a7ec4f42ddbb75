"""The path between two latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from glowserve.runtime.interpolation import interpolation_path


def angle(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """In radians, in double precision."""
    one, other = one.astype(float), other.astype(float)
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    return float(np.arccos(np.clip(cosine, -1, 1)))


@pytest.mark.parametrize("steps", [2, 3, 9])
def test_steps_lie_on_an_arc_at_equal_angles_and_have_the_length_of_the_ends(
    rng: np.random.Generator, steps: int
) -> None:
    start, end = rng.standard_normal((2, 3072)).astype(np.float32)
    end *= np.linalg.norm(start) / np.linalg.norm(end)
    path = interpolation_path(start, end, steps)
    assert (path.shape, path.dtype) == ((steps, 3072), np.float32)
    np.testing.assert_array_equal(path[[0, -1]], [start, end])
    np.testing.assert_allclose(np.linalg.norm(path, axis=1), np.linalg.norm(start), rtol=1e-6)
    angles = [angle(path[i], path[i + 1]) for i in range(steps - 1)]
    np.testing.assert_allclose(angles, angle(start, end) / (steps - 1), rtol=1e-4)


def test_the_path_back_is_the_same_path(rng: np.random.Generator) -> None:
    start, end = rng.standard_normal((2, 64)).astype(np.float32) * np.array([[1], [50]], np.float32)
    there, back = interpolation_path(start, end, 7), interpolation_path(end, start, 7)
    np.testing.assert_allclose(there, back[::-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 3.0, 1 + 1e-6, 0.0, -1.0, -2.0])
def test_parallel_and_opposite_latents_are_joined_by_a_line(rng: np.random.Generator, factor: float) -> None:
    start = rng.standard_normal(64).astype(np.float32)
    path = interpolation_path(start, (factor * start).astype(np.float32), 5)
    shares = np.linspace(1, factor, 5)[:, None]
    np.testing.assert_allclose(path, shares * start, rtol=1e-5, atol=1e-6)


def test_the_path_between_nearly_parallel_or_opposite_latents_does_not_grow(rng: np.random.Generator) -> None:
    start, aside = rng.standard_normal((2, 64)).astype(np.float32)
    for sign in (1, -1):
        for distance in np.geomspace(1e-8, 1e-1, 30):
            end = (sign * start + distance * aside).astype(np.float32)
            path = interpolation_path(start, end, 8)
            assert np.linalg.norm(path, axis=1).max() < 1.3 * np.linalg.norm(start)
