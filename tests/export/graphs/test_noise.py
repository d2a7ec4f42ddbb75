"""Variational dequantization in the forward graph, beside PyTorch in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from glowserve_export.builder import add_outputs
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.graphs import forward_graph, reverse_graph
from glowserve_export.reference import TorchReference
from glowserve_training.model import Glow, GlowConfig, Terms

from tests.export.models import random_glow, run_graph

# The largest value of the noise.
LAST = 1 - 2**-24
SHAPES = [
    {"image_size": 8, "channels": 1, "levels": 2, "n_bits": 4},
    {"image_size": 32, "channels": 3, "levels": 3, "n_bits": 8},
    {"image_size": 6, "channels": 3, "levels": 1, "n_bits": 5, "coupling": "additive"},
]


def _variational(**config: Any) -> Glow:
    return random_glow(dequantization="variational", **config)


def _inputs(rng: np.random.Generator, model: Glow, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Images, and noise that includes both ends of its range."""
    config = model.config
    shape = (n, *config.image_shape)
    noise = (rng.integers(0, 2**24, shape) * 2.0**-24).astype(np.float32)
    noise[0, 0, :2, 0] = 0, LAST
    return rng.integers(0, 256, shape, np.uint8), noise


def _learned_noise(model: Glow, images: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """[N, H, W, C]."""
    bins: np.ndarray = images >> (8 - model.config.n_bits)
    return TorchReference(model).dequantized(images, noise) - bins


def _terms(model: Glow, images: np.ndarray, noise: np.ndarray) -> Terms:
    """Of PyTorch in float64; changes the model."""
    with torch.no_grad():
        return model.double().terms(torch.from_numpy(images), torch.from_numpy(noise).double())


def _forward_with_noise(model: Glow) -> onnx.ModelProto:
    """The forward graph with the learned noise as another output, "dequantization"."""
    graph = forward_graph(fold_glow(model))
    add_outputs(graph, ["dequantization"])
    return graph


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_likelihoods_and_terms_are_those_of_pytorch(shape: dict[str, Any], rng: np.random.Generator) -> None:
    model = _variational(**shape)
    images, noise = _inputs(rng, model, 5)
    learned = _learned_noise(model, images, noise)
    assert np.abs(learned - noise).max() > 0.05, "the noise must change, or this test shows nothing"
    outputs = run_graph(_forward_with_noise(model), image=images, noise=noise)
    terms = _terms(model, images, noise)
    np.testing.assert_allclose(outputs["log_likelihood"], terms.total().numpy(), rtol=1e-6)
    np.testing.assert_allclose(outputs["log_prior"], terms.log_prior.numpy(), rtol=1e-5)
    np.testing.assert_allclose(outputs["log_det"], terms.log_det.numpy(), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(outputs["dequantization"], learned, atol=2e-6)


@pytest.mark.parametrize("value", [0.0, 2**-24, LAST])
def test_noise_at_the_ends_of_its_range_keeps_its_precision(value: float, rng: np.random.Generator) -> None:
    model = _variational(n_bits=4)
    images, noise = _inputs(rng, model, 3)
    noise[:] = value
    outputs = run_graph(forward_graph(fold_glow(model)), image=images, noise=noise)
    # 1 - u in float32 would have an error of 5 % here, and each of the 64 logarithms one of 0.05.
    expected = _terms(model, images, noise).log_det.numpy()
    np.testing.assert_allclose(outputs["log_det"], expected, rtol=1e-6, atol=2e-3)


def test_an_untrained_dequantization_is_the_identity(rng: np.random.Generator) -> None:
    uniform = random_glow(levels=2, n_bits=4)
    model = Glow(GlowConfig(**vars(uniform.config) | {"dequantization": "variational"})).eval()
    model.load_state_dict(model.state_dict() | uniform.state_dict())
    images, noise = _inputs(rng, model, 4)
    noise = noise.clip(0.01, 0.99)
    outputs = run_graph(_forward_with_noise(model), image=images, noise=noise)
    expected = run_graph(forward_graph(fold_glow(uniform)), image=images, noise=noise)
    np.testing.assert_allclose(outputs["dequantization"], noise, atol=2e-6)
    np.testing.assert_allclose(outputs["log_det"], expected["log_det"], atol=2e-4)
    np.testing.assert_allclose(outputs["log_likelihood"], expected["log_likelihood"], rtol=1e-5)


def test_it_is_thirteen_nodes_a_coupling_and_thirty_others() -> None:
    # A single coupling has no logits to join: one node less.
    glow = fold_glow(_variational(levels=2))
    learned = glow.dequantization
    assert learned is not None
    without = len(forward_graph(replace(glow, dequantization=None)).graph.node)
    for n in (1, 2, 4):
        some = replace(glow, dequantization=replace(learned, couplings=learned.couplings[:n]))
        assert len(forward_graph(some).graph.node) - without == 30 + 13 * n - (n == 1)


def test_the_reverse_graph_does_not_depend_on_it() -> None:
    glow = fold_glow(_variational(levels=2))
    assert reverse_graph(glow) == reverse_graph(replace(glow, dequantization=None))


def test_uniform_noise_is_added_unchanged() -> None:
    graph = forward_graph(fold_glow(random_glow(levels=2))).graph
    (node,) = [node for node in graph.node if "noise" in node.input]
    assert (node.op_type, list(node.input)) == ("Add", ["image.float", "noise"])
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    assert not any("dequantization" in name for name in names)
