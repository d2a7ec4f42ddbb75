"""The classes in the three graphs, against the float64 references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from glowserve_export.folded import FoldedGlow
from glowserve_export.folded_reference import FoldedReference
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.graphs import explain_graph, forward_graph, reverse_graph
from glowserve_export.reference import TorchReference
from glowserve_training.model import Glow

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Float32Array
from tests.export.models import random_glow, run_graph

CLASSES = 5
CASES: list[dict[str, Any]] = [
    {"levels": 2},
    {"levels": 1, "channels": 3},
    {"levels": 3, "preprocessing": "logit", "checkerboards": 2, "dequantization": "variational"},
    {
        "levels": 2,
        "coupling": "spline",
        "coupling_scale": "tanh",
        "preprocessing": "logit",
        "checkerboards": 2,
    },
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case.values())))
def model(request: pytest.FixtureRequest) -> Glow:
    made = random_glow(class_count=CLASSES, **request.param).double().requires_grad_(False)
    assert made.class_priors is not None
    generator = torch.Generator().manual_seed(0)
    made.class_priors.mean.normal_(0, 0.1, generator=generator)
    made.class_priors.log_scale.normal_(0, 0.2, generator=generator)
    made.class_priors.set_shares(torch.tensor([0, 0, 1, 3]))
    return made


@pytest.fixture(scope="module")
def glow(model: Glow) -> FoldedGlow:
    return fold_glow(model)


@pytest.fixture(scope="module")
def inputs(glow: FoldedGlow) -> tuple[UInt8Array, Float32Array]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (CLASSES + 1, *glow.image_shape), dtype=np.uint8)
    return images, rng.random(images.shape, dtype=np.float32)


def test_the_likelihood_is_summed_over_classes_and_comes_with_their_posterior(
    model: Glow, glow: FoldedGlow, inputs: tuple[UInt8Array, Float32Array]
) -> None:
    images, noise = inputs
    found = run_graph(forward_graph(glow), image=images, noise=noise)
    for reference in (TorchReference(model), FoldedReference(glow)):
        np.testing.assert_allclose(
            found["log_likelihood"], reference.log_likelihood(images, noise), rtol=1e-5
        )
        np.testing.assert_allclose(found["log_posterior"], reference.log_posterior(images, noise), atol=1e-3)
    total = found["log_prior"].sum(1) + found["log_det"].sum(1) + glow.log_det_constant
    np.testing.assert_allclose(total, found["log_likelihood"], rtol=1e-5)
    terms = model.terms(torch.from_numpy(images), torch.from_numpy(noise).double())
    np.testing.assert_allclose(found["log_prior"], terms.log_prior, rtol=1e-4, atol=1e-3)


def test_an_image_has_the_same_scores_in_every_batch(
    glow: FoldedGlow, inputs: tuple[UInt8Array, Float32Array]
) -> None:
    images, noise = inputs
    graph = forward_graph(glow)
    together = run_graph(graph, image=images, noise=noise)
    for i in range(len(images)):
        alone = run_graph(graph, image=images[i : i + 1], noise=noise[i : i + 1])
        for name, values in alone.items():
            np.testing.assert_array_equal(values[0], together[name][i])


def test_latents_are_decoded_as_those_of_their_class_or_as_they_are(
    model: Glow, glow: FoldedGlow, inputs: tuple[UInt8Array, Float32Array]
) -> None:
    latent = np.random.default_rng(1).normal(size=(CLASSES + 1, glow.dimensions)).astype(np.float32) / 2
    classes = np.array([*range(CLASSES), -1])
    pixels = run_graph(reverse_graph(glow), latent=latent, **{"class": classes})["pixels"]
    expected = FoldedReference(glow).pixels(latent, classes)
    np.testing.assert_allclose(pixels, expected, rtol=1e-3, atol=0.1)
    torch_pixels = TorchReference(model).pixels(latent[:-1], classes[:-1])
    np.testing.assert_allclose(torch_pixels, expected[:-1], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(FoldedReference(glow).pixels(latent[-1:]), expected[-1:])


def test_the_terms_by_place_add_up_to_the_likelihood(
    glow: FoldedGlow, inputs: tuple[UInt8Array, Float32Array]
) -> None:
    images, noise = inputs
    terms = run_graph(explain_graph(glow), image=images, noise=noise)["terms"]
    nats = run_graph(forward_graph(glow), image=images, noise=noise)["log_likelihood"]
    np.testing.assert_allclose(terms.sum((1, 2)), nats, rtol=1e-5)


def test_graphs_without_classes_have_no_tensor_of_them() -> None:
    glow = fold_glow(random_glow(levels=2))
    for graph in (forward_graph(glow).graph, reverse_graph(glow).graph, explain_graph(glow).graph):
        names = [tensor.name for tensor in (*graph.initializer, *graph.input, *graph.output)]
        assert not [name for name in names if "class" in name or "posterior" in name]
