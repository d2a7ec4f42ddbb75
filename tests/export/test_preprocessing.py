"""Preprocessing: the folded one is that of training, and its nodes keep the digits of float32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from glowserve_export.builder import GraphBuilder, float_info
from glowserve_export.folded_reference import FoldedReference
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.graphs import forward_graph, reverse_graph
from glowserve_export.preprocessing import FLOW_INPUT, Logit, Preprocessing, fold_preprocessing
from glowserve_training import preprocessing as trained

from tests.export.models import random_glow, run_graph

# The largest value of the noise.
LAST = 1 - 2**-24
KINDS = list(trained.PREPROCESSING_CLASSES)

Array = np.ndarray[Any, Any]


def _values(n_bits: int) -> tuple[Array, Array]:
    """Every bin with noise at the ends of its range and between, bins and noise [1, 1, 1, N]."""
    noise = np.array([0, 2**-24, 1e-4, 0.25, 0.5, 0.999, LAST])
    bins, noises = np.meshgrid(np.arange(2.0**n_bits), noise.astype(np.float32).astype(np.float64))
    return bins.reshape(1, 1, 1, -1), noises.reshape(1, 1, 1, -1)


def _fold(kind: str, n_bits: int) -> tuple[trained.Preprocessing, Preprocessing]:
    module = trained.PREPROCESSING_CLASSES[kind](n_bits)
    return module, fold_preprocessing(module)


@pytest.mark.parametrize("n_bits", [1, 5, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_the_folded_preprocessing_is_that_of_training(kind: str, n_bits: int) -> None:
    module, folded = _fold(kind, n_bits)
    bins, noise = (torch.from_numpy(values) for values in _values(n_bits))
    y, log_det = folded.forward(bins, noise, 1 - noise, n_bits)
    expected, expected_log_det = module(bins, noise, 1 - noise)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_det.sum(dim=(1, 2, 3)), expected_log_det, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(folded.inverse(y, n_bits), bins + noise, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(folded.inverse(y, n_bits), module.inverse(y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n_bits", [1, 5, 8])
def test_a_logit_is_as_precise_near_white_as_near_black(n_bits: int) -> None:
    """Of 1 - s in float32, a tenth would be left of the margin, and an error of 0.003 in the logit."""
    size = 2 ** (n_bits // 2 + n_bits % 2)
    images = np.zeros((2, size, size, 1), np.uint8)
    images[1] = 255
    for value in (0.0, 2**-24, 0.5, LAST):
        noise = np.full(images.shape, value, np.float32)
        found, expected = _flow_inputs(n_bits, images, noise)
        np.testing.assert_allclose(found, expected, rtol=4e-7, atol=1e-7)
        mirrored = _flow_inputs(n_bits, images[::-1].copy(), np.float32(1) - noise)[0]
        np.testing.assert_allclose(found, -mirrored, rtol=4e-7, atol=1e-7)


def _flow_inputs(n_bits: int, images: Array, noise: Array) -> tuple[Array, Array]:
    """Of the graph, and in float64, [N, C, H, W]."""
    model = random_glow(preprocessing="logit", n_bits=n_bits, image_size=images.shape[1], levels=1)
    glow = fold_glow(model)
    graph = forward_graph(glow)
    graph.graph.output.append(float_info(FLOW_INPUT, "N", 1, *images.shape[1:3]))
    found = run_graph(graph, image=images, noise=noise)[FLOW_INPUT]
    layers = dict(FoldedReference(glow).forward_layers(images, noise))
    return found, layers[FLOW_INPUT].numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stays_so_and_all_else_is_finite(kind: str) -> None:
    _, folded = _fold(kind, 8)
    y = np.array([np.nan, np.inf, -np.inf, 0, 88, -88, 1e30, -1e30], np.float32).reshape(8, 1, 1, 1)
    g = GraphBuilder()
    folded.add_reverse(g, "y", 8)
    model = g.model("reverse", [float_info("y", "N", 1, 1, 1)], [float_info("pixels", "N", 1, 1, 1)])
    pixels = run_graph(model, y=y)["pixels"].reshape(-1)
    np.testing.assert_array_equal(np.isfinite(pixels), 3 * [False] + 5 * [True])
    reference = folded.inverse(torch.from_numpy(y).double(), 8).flatten()
    assert reference.isfinite().tolist() == np.isfinite(pixels).tolist()
    if isinstance(folded, Logit):
        margin = 256 * folded.alpha / (1 - 2 * folded.alpha)
        np.testing.assert_allclose(pixels[4:6], [256 + margin, -margin], rtol=1e-4)


def test_a_sample_that_is_not_finite_before_the_sigmoid_is_not_finite_after_it() -> None:
    glow = fold_glow(random_glow(preprocessing="logit", checkerboards=2, levels=2))
    glow = replace(glow, top_log_scale=np.full_like(glow.top_log_scale, 80.0))
    latent = np.ones((2, glow.dimensions), np.float32)
    latent[1] = 0
    pixels = run_graph(reverse_graph(glow), latent=latent)["pixels"]
    assert not np.isfinite(pixels[0]).all()
    assert np.isfinite(pixels[1]).all()
