"""Combinations of what a model can be made of: PyTorch, the folded reference and both graphs agree."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from glowserve_export.calibration import calibrate
from glowserve_export.folded_reference import FoldedReference
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.graphs import forward_graph, reverse_graph
from glowserve_export.precision import FP16
from glowserve_export.reference import TorchReference
from glowserve_training.model import Glow

from tests.export.models import random_glow, random_images, random_noise, run_graph

SCALES = [
    {"coupling": "additive"},
    {"coupling": "affine", "coupling_scale": "sigmoid"},
    {"coupling": "affine", "coupling_scale": "tanh"},
    {"coupling": "spline", "coupling_scale": "tanh"},
]
SHAPES = [
    {"channels": 1, "image_size": 8, "levels": 2, "n_bits": 8},
    {"channels": 3, "image_size": 4, "levels": 2, "n_bits": 5},  # the top level has one position
    {"channels": 1, "image_size": 6, "levels": 1, "n_bits": 1},  # and here an odd number of rows
]
PARAMETRIZATIONS = ("qlu", "lu", "orthogonal", "plain")
# Of the parametrization, the exporter sees the matrix alone: each meets every other choice, but not every combination.
COMBINATIONS: list[dict[str, Any]] = [
    {
        **scale,
        "checkerboards": checkerboards,
        "preprocessing": preprocessing,
        "dequantization": dequantization,
        "parametrization": PARAMETRIZATIONS[(i + i // 4) % 4],
        **SHAPES[(i + i // 4) % 3],
    }
    for i, (preprocessing, dequantization, checkerboards, scale) in enumerate(
        product(("centre", "logit"), ("uniform", "variational"), (0, 1, 4), SCALES)
    )
]


@pytest.fixture(params=COMBINATIONS, ids=lambda case: "-".join(map(str, case.values())))
def model(request: pytest.FixtureRequest) -> Glow:
    return random_glow(**request.param)


def test_all_agree_on_likelihoods_latents_and_images(model: Glow, rng: np.random.Generator) -> None:
    glow = fold_glow(model)
    images = random_images(rng, glow, 4)
    images[0], images[1] = 0, 255  # all black, all white
    noise = random_noise(rng, images)
    torch, folded = TorchReference(model), FoldedReference(glow)
    expected = torch.log_likelihood(images, noise)
    np.testing.assert_allclose(folded.log_likelihood(images, noise), expected, rtol=1e-9)

    forward, reverse = forward_graph(glow), reverse_graph(glow)
    outputs = run_graph(forward, image=images, noise=noise)
    np.testing.assert_allclose(outputs["log_likelihood"], expected, rtol=1e-5)
    *_, (_, latent) = torch.forward_layers(images, noise)
    np.testing.assert_allclose(outputs["latent"], latent, rtol=1e-4, atol=1e-4)
    pixels = run_graph(reverse, latent=outputs["latent"])["pixels"]
    np.testing.assert_allclose(pixels, folded.pixels(outputs["latent"]), rtol=1e-4, atol=5e-3)

    encoded = run_graph(forward, image=images, noise=np.full(images.shape, 0.5, np.float32))["latent"]
    decoded = run_graph(reverse, latent=encoded)["image"]
    shift = 8 - glow.n_bits
    np.testing.assert_array_equal(decoded >> shift, images >> shift)


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("preprocessing", ["centre", "logit"])
def test_low_precision_is_that_of_the_couplings_of_pixels_too(
    scale: dict[str, Any], preprocessing: str, rng: np.random.Generator
) -> None:
    model = random_glow(checkerboards=2, preprocessing=preprocessing, **scale, channels=3, n_bits=6)
    glow = fold_glow(model)
    images = rng.integers(
        96, 160, (8, 8, 8, 3), np.uint8
    )  # black and white are far away from each other in logits
    noise = random_noise(rng, images)
    expected = FoldedReference(glow).log_likelihood(images, noise)
    for precision, bound in ((FP16, 1e-3), (calibrate("int8", glow, images), 0.02)):
        if precision.name == "int8":
            assert {"pixels.coupling1", "pixels.coupling2"} <= set(precision.ranges)
            assert len(precision.ranges["pixels.coupling1"].input) == 3
        outputs = run_graph(forward_graph(glow, precision), image=images, noise=noise)
        bits = (outputs["log_likelihood"] - expected) / glow.dimensions / np.log(2)
        assert 0 < np.abs(bits).mean() < bound
        decoded = run_graph(reverse_graph(glow, precision), latent=outputs["latent"])["image"]
        assert (decoded >> 2 == images >> 2).mean() > 0.9
