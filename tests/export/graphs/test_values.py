"""Both graphs: what they compute in ONNX Runtime, beside the NumPy interpreter and the contract in manifest.proto."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from glowserve_export.convolution import FoldedConv
from glowserve_export.couplings import FoldedCoupling, FoldedNetwork, Halves, Shift
from glowserve_export.folded import FoldedGlow, FoldedLevel, FoldedStep
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.graphs import forward_graph, reverse_graph
from glowserve_export.preprocessing import Logit
from glowserve_export.split import FoldedSplit
from glowserve_training.model import Glow

from glowserve.image_size import ImageSize
from tests.export import interpreter
from tests.export.models import random_glow, random_images, random_noise, run_graph

Graphs = dict[str, onnx.ModelProto]


def _grey(bins: np.ndarray, n_bits: int) -> np.ndarray:
    """The grey values of bins, as the contract defines them."""
    return np.round(np.clip(bins, 0, 2**n_bits - 1) * 255.0 / (2**n_bits - 1)).astype(np.uint8)


def _identity(*, image_size: int, channels: int, levels: int, n_bits: int) -> FoldedGlow:
    """A flow that only reorders values: its couplings add 0, its priors have mean 0 and scale 1."""

    def conv(out: int, into: int, kernel: int) -> FoldedConv:
        return FoldedConv(np.zeros((out, into, kernel, kernel)), np.zeros(out))

    folded = []
    for i in range(levels):
        c = channels * 2 ** (i + 2)
        network = FoldedNetwork(conv(1, c // 2, 3), conv(1, 1, 1), conv(c // 2, 1, 3))
        coupling = FoldedCoupling(Halves(), network, Shift())
        step = FoldedStep(np.eye(c), np.zeros(c), np.eye(c), np.zeros(c), coupling)
        folded.append(FoldedLevel((step,), None if i == levels - 1 else FoldedSplit(conv(c, c // 2, 3))))
    top = channels * 2 ** (levels + 1)
    return FoldedGlow(
        image_size=ImageSize.of(image_size),
        channels=channels,
        n_bits=n_bits,
        levels=tuple(folded),
        top_mean=np.zeros(top),
        top_log_scale=np.zeros(top),
        log_det_constant=-(image_size**2) * channels * n_bits * math.log(2),
    )


@pytest.mark.parametrize("n", [1, 3])
def test_forward_computes_what_the_interpreter_does(
    case_glow: FoldedGlow, case_graphs: Graphs, n: int, rng: np.random.Generator
) -> None:
    images = random_images(rng, case_glow, n)
    noise = random_noise(rng, images)
    expected = interpreter.forward(case_glow, images, noise)
    outputs = run_graph(case_graphs["forward"], image=images, noise=noise)
    assert set(outputs) == {"log_likelihood", "latent", "log_prior", "log_det"}
    np.testing.assert_allclose(outputs["log_likelihood"], expected.log_likelihood, rtol=2e-6)
    np.testing.assert_allclose(outputs["log_prior"], expected.log_prior, rtol=1e-5)
    np.testing.assert_allclose(outputs["log_det"], expected.log_det, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(outputs["latent"], expected.latent, rtol=1e-5, atol=2e-6)


def test_the_log_likelihood_is_the_sum_of_its_terms_and_the_constant(
    case_glow: FoldedGlow, case_graphs: Graphs, rng: np.random.Generator
) -> None:
    images = random_images(rng, case_glow, 3)
    outputs = run_graph(case_graphs["forward"], image=images, noise=random_noise(rng, images))
    terms = np.concatenate((outputs["log_prior"], outputs["log_det"]), axis=1).astype(np.float64)
    expected = terms.sum(axis=1) + case_glow.log_det_constant
    np.testing.assert_allclose(outputs["log_likelihood"], expected, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 3])
def test_reverse_computes_what_the_interpreter_does(
    case_glow: FoldedGlow, case_graphs: Graphs, n: int, rng: np.random.Generator
) -> None:
    latent = (0.5 * rng.standard_normal((n, case_glow.dimensions))).astype(np.float32)
    outputs = run_graph(case_graphs["reverse"], latent=latent)
    assert set(outputs) == {"image", "pixels"}
    expected = interpreter.reverse(case_glow, latent)
    np.testing.assert_allclose(outputs["pixels"], expected, rtol=5e-5, atol=5e-4)


def test_the_image_is_the_grey_value_of_the_bin_of_the_pixels(
    case_glow: FoldedGlow, case_graphs: Graphs, rng: np.random.Generator
) -> None:
    # Latents of scale 1 decode to many values outside [-0.5, 0.5], which are clipped.
    latent = rng.standard_normal((3, case_glow.dimensions)).astype(np.float32)
    outputs = run_graph(case_graphs["reverse"], latent=latent)
    if not isinstance(case_glow.preprocessing, Logit):
        assert outputs["pixels"].min() < 0
        assert outputs["pixels"].max() > 2**case_glow.n_bits
    np.testing.assert_array_equal(outputs["image"], _grey(np.floor(outputs["pixels"]), case_glow.n_bits))


def test_encoding_with_noise_one_half_and_decoding_is_lossless(
    case_model: Glow, case_glow: FoldedGlow, case_graphs: Graphs, rng: np.random.Generator
) -> None:
    images, n_bits = random_images(rng, case_glow, 4), case_glow.n_bits
    noise = np.full(images.shape, 0.5, np.float32)
    latent = run_graph(case_graphs["forward"], image=images, noise=noise)["latent"]
    decoded = run_graph(case_graphs["reverse"], latent=latent)
    bins = images >> (8 - n_bits)
    np.testing.assert_array_equal(decoded["image"] >> (8 - n_bits), bins)
    np.testing.assert_array_equal(decoded["image"], _grey(bins, n_bits))
    dequantized = case_model.dequantize(torch.from_numpy(images), torch.from_numpy(noise).double()).pixels()
    assert np.abs(decoded["pixels"] - dequantized.numpy()).max() < 0.05


@pytest.mark.parametrize("n_bits", range(1, 9))
def test_every_grey_value_is_decoded_to_its_bin(n_bits: int) -> None:
    glow = _identity(image_size=16, channels=1, levels=1, n_bits=n_bits)
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    encoded = run_graph(forward_graph(glow), image=images, noise=np.full(images.shape, 0.5, np.float32))
    decoded = run_graph(reverse_graph(glow), latent=encoded["latent"])
    assert len(np.unique(decoded["image"])) == 2**n_bits
    np.testing.assert_array_equal(decoded["image"] // 2 ** (8 - n_bits), images // 2 ** (8 - n_bits))


def test_noise_stays_inside_the_bin() -> None:
    glow = _identity(image_size=2, channels=1, levels=1, n_bits=3)
    images = np.array([0, 31, 32, 255], np.uint8).reshape(1, 2, 2, 1)
    noise = np.array([0, 0.25, 0.5, 1 - 2**-24], np.float32).reshape(1, 2, 2, 1)
    latent = run_graph(forward_graph(glow), image=images, noise=noise)["latent"]
    expected = np.array([0, 0.25, 1.5, 8 - 2**-24]) / 8 - 0.5
    np.testing.assert_allclose(latent[0], expected, atol=1e-7)


def test_latents_are_ordered_by_level_channel_row_and_column(rng: np.random.Generator) -> None:
    glow = _identity(image_size=4, channels=3, levels=2, n_bits=8)
    images = rng.permutation(256)[:48].astype(np.uint8).reshape(1, 4, 4, 3)
    y = images[0] / 256 - 0.5
    # Channel 3 (2 r + s) + c of a squeezed image is channel c at position (r, s) of each 2x2 block. Level 1 has twelve
    # channels, and splits off the last six: those with r = 1.
    expected = [
        y[2 * row + 1, 2 * column + s, c]
        for s in (0, 1)
        for c in (0, 1, 2)
        for row in (0, 1)
        for column in (0, 1)
    ]
    # Level 2 squeezes the other six, those with r = 0, in the same way.
    expected += [
        y[2 * row, 2 * column + s, c] for row in (0, 1) for column in (0, 1) for s in (0, 1) for c in range(3)
    ]
    outputs = run_graph(forward_graph(glow), image=images, noise=np.zeros(images.shape, np.float32))
    np.testing.assert_allclose(outputs["latent"][0], expected, atol=1e-7)
    decoded = run_graph(reverse_graph(glow), latent=outputs["latent"] + np.float32(0.5 / 256))
    np.testing.assert_array_equal(decoded["image"], images)


def test_the_likelihood_of_the_identity_is_that_of_a_standard_normal(rng: np.random.Generator) -> None:
    glow = _identity(image_size=4, channels=1, levels=2, n_bits=8)
    images = random_images(rng, glow, 3)
    noise = random_noise(rng, images)
    y = (images + noise.astype(np.float64)) / 256 - 0.5
    log_density = (-0.5 * y**2 - 0.5 * math.log(2 * math.pi)).sum(axis=(1, 2, 3))
    outputs = run_graph(forward_graph(glow), image=images, noise=noise)
    np.testing.assert_allclose(outputs["log_likelihood"], log_density - 16 * 8 * math.log(2), rtol=1e-6)
    np.testing.assert_array_equal(outputs["log_det"], np.zeros((3, 2)))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"dequantization": "variational"},
    {"preprocessing": "logit", "coupling_scale": "tanh"},
    {"preprocessing": "logit", "coupling_scale": "tanh", "checkerboards": 3, "dequantization": "variational"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("coupling", ["affine", "additive"])
def test_the_batch_can_have_any_size(
    coupling: str, options: dict[str, Any], rng: np.random.Generator
) -> None:
    glow = fold_glow(random_glow(levels=2, channels=3, coupling=coupling, **options))
    images = random_images(rng, glow, 7)
    noise = random_noise(rng, images)
    forward, reverse = forward_graph(glow), reverse_graph(glow)
    whole = run_graph(forward, image=images, noise=noise)
    whole |= run_graph(reverse, latent=whole["latent"])
    for n in (1, 2, 7):
        part = run_graph(forward, image=images[:n], noise=noise[:n])
        part |= run_graph(reverse, latent=whole["latent"][:n])
        for name, array in part.items():
            assert len(array) == n, name
            np.testing.assert_allclose(array, whole[name][:n], rtol=1e-6, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "shape",
    [{"image_size": 32, "channels": 3, "levels": 3}, {"image_size": 12, "channels": 1, "levels": 2}],
    ids=str,
)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_score_does_not_depend_on_its_place_in_the_batch(
    rng: np.random.Generator, shape: dict[str, Any], options: dict[str, Any]
) -> None:
    glow = fold_glow(random_glow(**shape, **options))
    model, image = forward_graph(glow), random_images(rng, glow, 1)
    noise = random_noise(rng, image)
    alone = run_graph(model, image=image, noise=noise)
    for n in (3, 16):
        together = run_graph(model, image=np.repeat(image, n, 0), noise=np.repeat(noise, n, 0))
        for name, values in together.items():
            np.testing.assert_array_equal(values, np.repeat(alone[name], n, 0), err_msg=name)
