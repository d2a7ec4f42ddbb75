"""The contrasts of images: what they respond to, and what they do not."""

from __future__ import annotations

import numpy as np
import pytest

from glowserve.scores.contrasts import contrasts, width

FLOOR = 1 / 48


def _shown(images: np.ndarray, levels: int = 2) -> np.ndarray:
    return contrasts(images, 8, levels)


@pytest.mark.parametrize(
    ("shape", "levels"), [((8, 8, 1), 2), ((28, 28, 1), 2), ((32, 16, 3), 3), ((2, 2, 3), 1)]
)
def test_there_are_as_many_as_said(rng: np.random.Generator, shape: tuple[int, ...], levels: int) -> None:
    found = _shown(rng.integers(0, 256, (3, *shape), dtype=np.uint8), levels)
    assert found.shape == (3, width(shape[2], levels))
    assert np.isfinite(found).all()


def test_the_energies_add_up_to_the_variance_of_the_image(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (4, 16, 16, 1), dtype=np.uint8)
    energies = np.exp(_shown(images)) - FLOOR
    np.testing.assert_allclose(
        energies.sum(axis=1), images.reshape(4, -1).astype(float).var(axis=1), rtol=1e-9
    )


def test_stripes_are_in_one_direction_of_the_finest_scale() -> None:
    stripes = np.zeros((1, 8, 8, 1), np.uint8)
    stripes[:, :, ::2] = 200
    energies = np.exp(_shown(stripes)[0]) - FLOOR
    np.testing.assert_allclose(energies, [100**2, 0, 0, 0, 0, 0, 0], atol=1e-6)
    turned = np.exp(_shown(stripes.transpose(0, 2, 1, 3))[0]) - FLOOR
    np.testing.assert_allclose(turned, [0, 100**2, 0, 0, 0, 0, 0], atol=1e-6)


def test_grey_images_have_no_contrast_of_colour(rng: np.random.Generator) -> None:
    grey = np.repeat(rng.integers(0, 256, (2, 8, 8, 1), dtype=np.uint8), 3, axis=3)
    energies = np.exp(_shown(grey)).reshape(2, 7, -1) - FLOOR
    by_plane = np.concatenate([np.exp(_shown(grey))[:, 3 * i : 3 * i + 3] for i in range(7)], axis=0) - FLOOR
    assert energies.size == by_plane.size
    assert (by_plane[:, 0] > 1).all()
    np.testing.assert_allclose(by_plane[:, 1:], 0, atol=1e-9)


def test_what_a_model_does_not_see_adds_nothing(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    same_bins = (images & 0xF0) | rng.integers(0, 16, images.shape, dtype=np.uint8)
    np.testing.assert_array_equal(contrasts(images, 4, 2), contrasts(same_bins, 4, 2))
    assert (contrasts(images, 4, 2) < contrasts(images, 8, 2)).all()


def test_an_image_has_the_same_contrasts_alone_and_among_many(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    together = _shown(images, 3)
    for i in (0, 41, 42, 199):
        np.testing.assert_array_equal(_shown(images[i : i + 1], 3)[0], together[i])
