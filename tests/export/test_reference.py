"""What graphs are measured by: two ways to the same numbers, and the tests' own interpreter beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from glowserve_export.folded import FoldedConv, FoldedGlow
from glowserve_export.folded_reference import FoldedReference
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.graphs import forward_graph, reverse_graph
from glowserve_export.reference import Reference, TorchReference
from glowserve_training.model import Glow

from glowserve.images import UInt8Array

RandomGlow = Callable[..., Glow]


@pytest.fixture
def model(case: dict[str, Any], random_glow: RandomGlow) -> Glow:
    """A model of each kind whose dequantization is not learned."""
    if case.get("dequantization") == "variational":
        pytest.skip("a learned dequantization is measured against its own model alone")
    return random_glow(**case)


def _given(glow: FoldedGlow, n: int = 3) -> tuple[UInt8Array, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    shape = (n, glow.image_size, glow.image_size, glow.channels)
    return rng.integers(0, 256, shape, dtype=np.uint8), rng.random(shape, dtype=np.float32)


def _close(ours: npt.NDArray[Any], theirs: npt.NDArray[Any], name: str = "", tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance, err_msg=name)


def test_constants_and_model_yield_the_same_layer_by_layer(model: Glow) -> None:
    glow = fold_glow(model)
    images, noise = _given(glow)
    one, other = FoldedReference(glow), TorchReference(model)

    _close(one.log_likelihood(images, noise), other.log_likelihood(images, noise))
    _close(one.dequantized(images, noise), other.dequantized(images, noise))
    forward = list(zip(one.forward_layers(images, noise), other.forward_layers(images, noise), strict=True))
    latent = forward[-1][0][1].numpy().astype(np.float32)
    reverse = list(zip(one.reverse_layers(latent), other.reverse_layers(latent), strict=True))
    # The model inverts an orthogonal W, begun in float32, by W^T.
    tolerance = 1e-4 if model.config.parametrization == "orthogonal" else 1e-9
    for layers, close in ((forward, 1e-9), (reverse, tolerance)):
        for (name, ours), (their_name, theirs) in layers:
            assert name == their_name
            _close(ours.numpy(), theirs.numpy(), name, close)
    assert len(forward) == len(reverse) == (2 + 1) * len(glow.levels) + 1
    _close(one.pixels(latent), other.pixels(latent), tolerance=tolerance)


@pytest.fixture
def by_place(random_glow: RandomGlow) -> FoldedGlow:
    """Constants of which every bias and the top prior differ from place to place."""
    rng = np.random.default_rng(1)
    glow = fold_glow(random_glow(levels=2, channels=3))

    def spread(conv: FoldedConv, size: int) -> FoldedConv:
        return replace(conv, bias=conv.bias[:, None, None] + 0.1 * rng.standard_normal((1, size, size)))

    levels = []
    for level, (_, _, size) in zip(glow.levels, glow.latent_shapes(), strict=True):
        steps = []
        for step in level.steps:
            first, second, last = (spread(conv, size) for conv in step.network)
            steps.append(replace(step, network=(first, second, last)))
        prior = spread(level.prior, size) if level.prior else None
        levels.append(replace(level, steps=tuple(steps), prior=prior))
    top = glow.latent_shapes()[-1]
    return replace(
        glow,
        levels=tuple(levels),
        top_mean=rng.standard_normal(top),
        top_log_scale=0.1 * rng.standard_normal(top),
    )


def test_what_differs_from_place_to_place_does_so_everywhere(
    by_place: FoldedGlow, interpreter: Any, run_graph: Callable[..., dict[str, Any]]
) -> None:
    images, noise = _given(by_place)
    exact: Reference = FoldedReference(by_place)
    oracle = interpreter.forward(by_place, images, noise)
    latent = oracle.latent.astype(np.float32)

    _close(exact.log_likelihood(images, noise), oracle.log_likelihood)
    _close(exact.pixels(latent), interpreter.reverse(by_place, latent))
    graph = run_graph(forward_graph(by_place), image=images, noise=noise)
    np.testing.assert_allclose(graph["log_likelihood"], oracle.log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(graph["latent"], oracle.latent, rtol=1e-4, atol=1e-4)
    pixels = run_graph(reverse_graph(by_place), latent=latent)["pixels"]
    np.testing.assert_allclose(pixels, interpreter.reverse(by_place, latent), rtol=0, atol=0.02)


def test_a_learned_dequantization_has_no_exact_flow_of_constants(random_glow: RandomGlow) -> None:
    with pytest.raises(ValueError, match="its own model"):
        FoldedReference(fold_glow(random_glow(dequantization="variational")))
