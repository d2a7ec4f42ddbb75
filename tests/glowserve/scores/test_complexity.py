"""The complexity of images, and by what their codec is known."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from glowserve.scores import complexity
from glowserve.scores.complexity import complexity_bits_per_dim, fingerprint


@pytest.mark.parametrize("channels", [1, 3])
def test_the_size_is_that_of_a_file_that_has_the_very_image(rng: np.random.Generator, channels: int) -> None:
    images = rng.integers(0, 256, (3, 9, 7, channels), dtype=np.uint8)
    bits = complexity_bits_per_dim(images, 8)
    for image, found in zip(images, bits, strict=True):
        file = io.BytesIO()
        shown = np.repeat(image, 3, axis=2) if channels == 1 else image
        Image.fromarray(shown).save(file, "WEBP", lossless=True, exact=True, quality=0, method=1)
        np.testing.assert_array_equal(np.asarray(Image.open(file)), shown)
        assert found == 8 * len(file.getvalue()) / image.size


def test_noise_is_more_complex_than_a_gradient_and_that_than_nothing(rng: np.random.Generator) -> None:
    noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    gradient = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None, None], (32, 32, 3))
    bits = complexity_bits_per_dim(np.stack([noise, gradient, np.zeros_like(noise)]), 8)
    assert bits[0] > 7.9
    assert bits[0] > bits[1] > bits[2] > 0


def test_what_a_model_does_not_see_adds_nothing(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    same_bins = (images & 0xF0) | rng.integers(0, 16, images.shape, dtype=np.uint8)
    np.testing.assert_array_equal(complexity_bits_per_dim(images, 4), complexity_bits_per_dim(same_bins, 4))
    assert (complexity_bits_per_dim(images, 4) < complexity_bits_per_dim(images, 8)).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 8, 1), (32, 32, 3), (5, 3, 3)])
def test_another_codec_has_another_fingerprint(
    rng: np.random.Generator, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = rng.integers(0, 256, shape, dtype=np.uint8)
    here = fingerprint(canary)
    np.testing.assert_array_equal(here, fingerprint(canary))
    if shape == (32, 32, 3):
        monkeypatch.setattr(complexity, "_METHOD", 6)
        assert not np.array_equal(here, fingerprint(canary))
