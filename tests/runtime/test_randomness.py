"""Noise and latents of seeds, compared with a second implementation of what `RandomnessVersion` specifies."""

from __future__ import annotations

import hashlib
import math
import struct

import numpy as np
import pytest

import glowserve.runtime.randomness
from glowserve.runtime.randomness import dequantization_noise, latents

LARGEST_SEED = 2**64 - 1


# Philox4x64-10 in plain integers: Salmon et al. 2011, table 2.


def _philox_block(counter: int, key: tuple[int, int]) -> list[int]:
    """Four 64-bit words."""
    low64 = 2**64 - 1
    x0, x1, x2, x3 = counter, 0, 0, 0
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * x0, 0xCA5A826395121157 * x2
        x0, x1, x2, x3 = (b >> 64) ^ x1 ^ k0, b & low64, (a >> 64) ^ x3 ^ k1, a & low64
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & low64, (k1 + 0xBB67AE8584CAA73B) & low64
    return [x0, x1, x2, x3]


def _philox(person: bytes, content: bytes, n: int) -> list[int]:
    """The first n words of a stream; its blocks are counted from 1."""
    digest = hashlib.blake2b(content, digest_size=16, person=person).digest()
    key = struct.unpack("<2Q", digest)
    words: list[int] = []
    while len(words) < n:
        words += _philox_block(len(words) // 4 + 1, key)
    return words[:n]


def _expected_noise(seed: int, image: np.ndarray) -> np.ndarray:
    content = struct.pack("<QIII", seed, *image.shape) + image.tobytes()
    words = _philox(b"glowserve.noise", content, math.ceil(image.size / 2))
    halves = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
    uniforms = [(half >> 8) / 2**24 for half in halves[: image.size]]
    return np.array(uniforms, np.float32).reshape(image.shape)


def _expected_latent(seed: int, sample: int, size: int, *attempt: int) -> np.ndarray:
    """The latent of the first attempt unless another is given."""
    content = struct.pack(f"<{2 + len(attempt)}Q", seed, sample, *attempt)
    words = _philox(b"glowserve.sample", content, 2 * math.ceil(size / 2))
    uniforms = [(word >> 11) / 2**53 for word in words]
    normals = []
    for u, v in zip(uniforms[0::2], uniforms[1::2], strict=True):
        r = math.sqrt(-2 * math.log(1 - u))
        normals += [r * math.cos(2 * math.pi * v), r * math.sin(2 * math.pi * v)]
    return np.array(normals[:size], np.float32)


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (5, 8, 8, 3), np.uint8)


def test_the_second_implementation_of_philox_gives_the_published_words() -> None:
    assert _philox_block(0, (0, 0)) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]


@pytest.mark.parametrize("seed", [0, 1, 12345678901234567890, LARGEST_SEED])
@pytest.mark.parametrize("shape", [(8, 8, 1), (4, 6, 3), (3, 5, 1)])
def test_noise_is_as_specified(seed: int, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(dequantization_noise(seed, image[None])[0], _expected_noise(seed, image))


@pytest.mark.parametrize("seed", [0, 1, 12345678901234567890, LARGEST_SEED])
@pytest.mark.parametrize(("sample", "size"), [(0, 64), (1, 48), (99_999, 15)])
def test_latents_are_as_specified(seed: int, sample: int, size: int) -> None:
    # One unit in the last place: libraries may round the cosine of a double differently.
    np.testing.assert_array_max_ulp(
        latents(seed, sample, 1, size)[0], _expected_latent(seed, sample, size), maxulp=1
    )


@pytest.mark.parametrize("attempt", [1, 2])
def test_the_latent_of_a_later_attempt_is_as_specified(attempt: int) -> None:
    expected = [_expected_latent(7, sample, 15, attempt) for sample in (3, 4)]
    np.testing.assert_array_max_ulp(latents(7, 3, 2, 15, attempt=attempt), np.stack(expected), maxulp=1)


def test_the_noise_of_a_known_image_has_not_changed() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    noise = dequantization_noise(7, image).reshape(-1)
    known = [9810867, 13289107, 3729518, 9021454, 2082313, 8666862]
    known += [495491, 15063694, 15880093, 8094457, 14328196, 6149910]
    np.testing.assert_array_equal(noise * 2.0**24, known)


def test_the_latent_of_a_known_seed_has_not_changed() -> None:
    known = [-0.92333782, -0.62415117, -1.07034087, 0.94229776, 0.81969118, 2.37293553]
    np.testing.assert_array_max_ulp(latents(7, 3, 1, 6)[0], np.array(known, np.float32), maxulp=1)


# Noise


def test_noise_is_float32_and_less_than_1(images: np.ndarray) -> None:
    noise = np.stack([dequantization_noise(seed, images) for seed in range(200)])
    assert noise.dtype == np.float32
    assert noise.shape == (200, *images.shape)
    assert noise.min() >= 0
    assert noise.max() < 1
    scaled = noise.astype(np.float64) * 2**24
    np.testing.assert_array_equal(scaled, np.floor(scaled))


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_the_smallest_and_largest_words_give_finite_numbers_in_range(
    word: int, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glowserve.runtime.randomness, "_words", lambda _key, n: np.full(n, word, "<u8"))
    noise = dequantization_noise(0, images)
    assert np.unique(noise).tolist() == [0.0 if word == 0 else 1 - 2.0**-24]
    normals = latents(0, 0, 1, 64)
    assert np.isfinite(normals).all()
    assert np.abs(normals).max() <= 8.6


def test_noise_depends_on_the_image_and_not_on_its_batch(images: np.ndarray) -> None:
    whole = dequantization_noise(3, images)
    order = [3, 0, 4, 1, 2]
    np.testing.assert_array_equal(dequantization_noise(3, images[order]), whole[order])
    for i in range(len(images)):
        np.testing.assert_array_equal(dequantization_noise(3, images[i : i + 1])[0], whole[i])
    twice = dequantization_noise(3, images[[0, 0]])
    np.testing.assert_array_equal(twice[0], twice[1])


def test_noise_does_not_depend_on_the_memory_order_of_the_image(images: np.ndarray) -> None:
    strided = np.asfortranarray(images)
    assert not strided[0].flags.c_contiguous
    np.testing.assert_array_equal(dequantization_noise(3, strided), dequantization_noise(3, images))


def test_another_seed_pixel_or_shape_changes_the_noise_everywhere() -> None:
    image = np.zeros((1, 8, 8, 1), np.uint8)
    other = image.copy()
    other[0, 7, 7, 0] = 1
    noise = dequantization_noise(0, image)
    for changed in (
        dequantization_noise(1, image),
        dequantization_noise(0, other),
        dequantization_noise(0, image.reshape(1, 4, 16, 1)).reshape(noise.shape),
    ):
        assert (changed != noise).mean() > 0.95


def test_noise_is_uniform() -> None:
    images = np.arange(256, dtype=np.uint8).repeat(32 * 32).reshape(256, 32, 32, 1)
    noise = dequantization_noise(0, images).reshape(-1).astype(np.float64)
    n = noise.size
    # Five standard errors: of the mean, of the variance, and of the chi-square of a hundred equal bins.
    assert abs(noise.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / n)
    assert abs(noise.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / n)
    counts, _ = np.histogram(noise, bins=100, range=(0, 1))
    chi_square = ((counts - n / 100) ** 2 / (n / 100)).sum()
    assert abs(chi_square - 99) < 5 * math.sqrt(2 * 99)


def test_consecutive_seeds_give_uncorrelated_noise() -> None:
    image = np.zeros((1, 64, 64, 1), np.uint8)
    first, second = (dequantization_noise(seed, image).reshape(-1) for seed in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(first.size)


# Latents


def test_a_latent_does_not_depend_on_the_number_of_latents() -> None:
    whole = latents(5, 0, 40, 48)
    assert whole.dtype == np.float32
    assert whole.shape == (40, 48)
    pieces = [latents(5, first, n, 48) for first, n in ((0, 1), (1, 7), (8, 32))]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_samples_seeds_and_attempts_give_different_latents() -> None:
    seeds = (0, 1, 2**32, LARGEST_SEED)
    drawn = [latents(seed, 0, 50, 16, attempt=attempt) for seed in seeds for attempt in range(3)]
    assert len(np.unique(np.concatenate(drawn), axis=0)) == 600


def test_latents_are_standard_normal() -> None:
    z = latents(0, 0, 500, 768).astype(np.float64)
    n = z.size
    # Five standard errors of each moment of a standard normal.
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / n)
    beyond = math.erfc(3 / math.sqrt(2))
    assert abs((np.abs(z) > 3).mean() - beyond) < 5 * math.sqrt(beyond / n)
    # The two numbers of a pair have the same radius, and must be uncorrelated.
    pairs = z.reshape(-1, 2)
    assert abs((pairs[:, 0] * pairs[:, 1]).mean()) < 5 / math.sqrt(len(pairs))
    squares = pairs**2
    assert abs(np.corrcoef(squares[:, 0], squares[:, 1])[0, 1]) < 5 / math.sqrt(len(pairs))
