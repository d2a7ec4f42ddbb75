"""Corruptions: each changes what it says, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from glowserve_export import corruptions as changes

from glowserve.images import UInt8Array


@pytest.fixture(params=[(8, 8, 1), (8, 8, 3), (9, 7, 3), (2, 2, 1), (1, 1, 3)])
def images(request: pytest.FixtureRequest, rng: np.random.Generator) -> UInt8Array:
    return rng.integers(0, 256, (5, *request.param), dtype=np.uint8)


def test_each_has_the_shape_of_the_originals_and_leaves_them_alone(images: UInt8Array) -> None:
    before = images.copy()
    found = dict(changes.corruptions(images))
    for name, changed in found.items():
        assert (changed.shape, changed.dtype) == (images.shape, np.uint8), name
        if images.shape[1] == 8:
            assert not (changed == images).all(axis=(1, 2, 3)).any(), name
    np.testing.assert_array_equal(images, before)
    assert ("grey" in found) == (images.shape[3] == 3)


def test_they_are_the_same_in_every_run(images: UInt8Array) -> None:
    for (name, one), (_, other) in zip(changes.corruptions(images), changes.corruptions(images), strict=True):
        np.testing.assert_array_equal(one, other, name)


def test_blurring_keeps_the_mean_and_takes_away_contrast(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    spreads = [changes.blurred(images, radius).std() for radius in (0.5, 1, 2)]
    assert images.std() > spreads[0] > spreads[1] > spreads[2]
    assert changes.blurred(images, 2).mean() == pytest.approx(images.mean(), abs=1)


def test_grey_images_have_equal_channels(rng: np.random.Generator) -> None:
    grey = changes.grey(rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8))
    assert (grey == grey[..., :1]).all()


def test_shuffled_patches_have_the_same_pixels_in_other_places(rng: np.random.Generator) -> None:
    images = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8, 1)
    changed = changes.shuffled_patches(images, 2, rng)
    np.testing.assert_array_equal(np.sort(changed.reshape(3, -1)), np.sort(images.reshape(3, -1)))
    # Inside a square, neighbours stay neighbours.
    np.testing.assert_array_equal(changed[:, ::2, 1::2], changed[:, ::2, ::2] + 1)
    np.testing.assert_array_equal(changed[:, 1::2, ::2], changed[:, ::2, ::2] + 8)


def test_halves_mirror_each_other(rng: np.random.Generator) -> None:
    for width in (8, 7):
        changed = changes.mirrored_halves(rng.integers(0, 256, (3, 4, width, 1), dtype=np.uint8))
        np.testing.assert_array_equal(changed, changed[:, :, ::-1])


def test_pixelated_images_consist_of_squares(rng: np.random.Generator) -> None:
    changed = changes.pixelated(rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8))
    np.testing.assert_array_equal(changed[:, ::2, ::2], changed[:, 1::2, 1::2])


def test_half_contrast_is_half_as_far_from_grey() -> None:
    images = np.array([0, 100, 255], np.uint8).reshape(1, 3, 1, 1)
    assert changes.half_contrast(images).ravel().tolist() == [64, 114, 191]


def test_flat_colours_are_flat_and_differ(rng: np.random.Generator) -> None:
    changed = changes.flat_colours(np.zeros((10, 4, 4, 3), np.uint8), rng)
    assert (changed == changed[:, :1, :1]).all()
    assert len(np.unique(changed[:, 0, 0], axis=0)) == 10
