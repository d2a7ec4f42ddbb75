"""Both references: PyTorch's and the folded one yield the same layer by layer, and so does the NumPy interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from glowserve_export.convolution import FoldedConv
from glowserve_export.couplings import FoldedNetwork
from glowserve_export.folded import FoldedGlow
from glowserve_export.folded_reference import FoldedReference
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.graphs import forward_graph, reverse_graph
from glowserve_export.reference import TorchReference
from glowserve_training.model import Glow

from tests.export import interpreter
from tests.export.models import CASES, random_glow, random_images, run_graph


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case.values())))
def model(request: pytest.FixtureRequest) -> Glow:
    """A model of each kind."""
    return random_glow(**request.param)


def _inputs(
    rng: np.random.Generator, glow: FoldedGlow
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    images = random_images(rng, glow, 3)
    return images, rng.random(images.shape, dtype=np.float32)


def _assert_close(
    ours: npt.NDArray[Any], theirs: npt.NDArray[Any], name: str = "", tolerance: float = 1e-9
) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance, err_msg=name)


def test_both_references_have_the_same_layers(model: Glow, rng: np.random.Generator) -> None:
    glow = fold_glow(model)
    images, noise = _inputs(rng, glow)
    folded, torch = FoldedReference(glow), TorchReference(model)

    _assert_close(folded.log_likelihood(images, noise), torch.log_likelihood(images, noise))
    _assert_close(folded.dequantized(images, noise), torch.dequantized(images, noise))
    forward = list(
        zip(folded.forward_layers(images, noise), torch.forward_layers(images, noise), strict=True)
    )
    latent = forward[-1][0][1].numpy().astype(np.float32)
    reverse = list(zip(folded.reverse_layers(latent), torch.reverse_layers(latent), strict=True))
    # PyTorch uses the transpose of an orthogonal matrix for its inverse, whose weights are float32.
    tolerance = 1e-4 if model.config.parametrization in ("orthogonal", "qlu") else 1e-9
    for layers, close in ((forward, 1e-9), (reverse, tolerance)):
        for (name, ours), (their_name, theirs) in layers:
            assert name == their_name
            _assert_close(ours.numpy(), theirs.numpy(), name, close)
    # Each step of both levels, each prior, each coupling of pixels, and the end.
    layers_of_both = (2 + 1) * len(glow.levels) + len(glow.pixel_couplings) + 1
    # Four couplings of dequantization, and its noise.
    of_noise = 4 + 1 if glow.dequantization else 0
    assert len(reverse) == layers_of_both
    assert len(forward) == layers_of_both + 1 + of_noise, "one more: the flow's input"
    _assert_close(folded.pixels(latent), torch.pixels(latent), tolerance=tolerance)


@pytest.fixture
def per_position(rng: np.random.Generator) -> FoldedGlow:
    """A flow in which every bias and the top prior depend on the position."""
    glow = fold_glow(random_glow(levels=2, channels=3))

    def spread(conv: FoldedConv, size: int) -> FoldedConv:
        return replace(conv, bias=conv.bias[:, None, None] + 0.1 * rng.standard_normal((1, size, size)))

    levels = []
    for level, (_, _, size) in zip(glow.levels, glow.latent_shapes(), strict=True):
        steps = []
        for step in level.steps:
            network = FoldedNetwork(*(spread(conv, size) for conv in step.coupling.network))
            steps.append(replace(step, coupling=replace(step.coupling, network=network)))
        split = level.split and replace(level.split, network=spread(level.split.network, size))
        levels.append(replace(level, steps=tuple(steps), split=split))
    top = glow.latent_shapes()[-1]
    return replace(
        glow,
        levels=tuple(levels),
        top_mean=rng.standard_normal(top),
        top_log_scale=0.1 * rng.standard_normal(top),
    )


def test_biases_that_depend_on_the_position_do_so_in_reference_and_graphs(
    per_position: FoldedGlow, rng: np.random.Generator
) -> None:
    images, noise = _inputs(rng, per_position)
    reference = FoldedReference(per_position)
    expected = interpreter.forward(per_position, images, noise)
    latent = expected.latent.astype(np.float32)

    _assert_close(reference.log_likelihood(images, noise), expected.log_likelihood)
    _assert_close(reference.pixels(latent), interpreter.reverse(per_position, latent))
    outputs = run_graph(forward_graph(per_position), image=images, noise=noise)
    np.testing.assert_allclose(outputs["log_likelihood"], expected.log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(outputs["latent"], expected.latent, rtol=1e-4, atol=1e-4)
    pixels = run_graph(reverse_graph(per_position), latent=latent)["pixels"]
    np.testing.assert_allclose(pixels, interpreter.reverse(per_position, latent), rtol=0, atol=0.02)
