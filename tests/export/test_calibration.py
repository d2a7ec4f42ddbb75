"""Calibration of int8: which networks are quantized, what that costs, and what is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from glowserve_export.calibration import INT8_BOUND, calibrate
from glowserve_export.convolution import FoldedConv
from glowserve_export.couplings import FoldedCoupling, FoldedNetwork, Halves
from glowserve_export.errors import ExportError
from glowserve_export.folded import FoldedGlow
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.graphs import forward_graph, reverse_graph
from glowserve_export.precision import FP16, FP32, Precision
from glowserve_training.layers import Squeeze

from glowserve.images import UInt8Array
from glowserve.likelihood import bits_per_dim
from glowserve.runtime.randomness import dequantization_noise, latents
from tests.export.models import random_glow, random_images, run_graph
from tests.export.quantized import network_nodes, with_couplings, with_networks


def _bits(glow: FoldedGlow, precision: Precision, images: UInt8Array) -> np.ndarray[Any, Any]:
    outputs = run_graph(forward_graph(glow, precision), image=images, noise=dequantization_noise(0, images))
    return bits_per_dim(outputs["log_likelihood"].astype(np.float64), glow.dimensions)


def _sensitive(network: FoldedNetwork) -> FoldedNetwork:
    """A network with a useless hidden channel so large that a byte of its scale is more than all other channels."""
    first, second, last = network
    bias, weight = second.bias.copy(), last.weight.copy()
    bias[0], weight[:, 0] = 1e4, 0
    return FoldedNetwork(first, replace(second, bias=bias), replace(last, weight=weight))


def test_a_trained_model_loses_little_and_decodes_most_values_to_their_bins(
    trained: FoldedGlow, int8: Precision, digits: UInt8Array
) -> None:
    fp32 = _bits(trained, FP32, digits)
    for precision, bound in ((FP16, 1e-3), (int8, INT8_BOUND)):
        assert abs((_bits(trained, precision, digits) - fp32).mean()) <= bound
        noise = np.full(digits.shape, 0.5, np.float32)
        latent = run_graph(forward_graph(trained, precision), image=digits, noise=noise)["latent"]
        reverse = reverse_graph(trained, precision)
        decoded = run_graph(reverse, latent=latent)["image"]
        shift = 8 - trained.n_bits
        assert (decoded >> shift == digits >> shift).mean() > 0.95
        assert np.isfinite(run_graph(reverse, latent=latents(0, 0, 16, trained.dimensions))["pixels"]).all()


def test_the_same_images_give_the_same_bytes(
    trained: FoldedGlow, validation: UInt8Array, int8: Precision
) -> None:
    again = calibrate("int8", trained, validation)
    for graph in (forward_graph, reverse_graph):
        first, second = (graph(trained, precision).SerializeToString() for precision in (int8, again))
        assert first == second


def test_a_network_that_loses_too_much_stays_float32(trained: FoldedGlow, validation: UInt8Array) -> None:
    glow = with_networks(trained, _sensitive, "level1.step2")
    precision = calibrate("int8", glow, validation)
    assert {each.name for each in glow.flow_couplings()} - set(precision.ranges) == {"level1.step2"}
    loss = _bits(glow, precision, validation) - _bits(glow, FP32, validation)
    assert loss.mean() <= INT8_BOUND
    nodes = network_nodes(forward_graph(glow, precision), "level1.step2")
    assert Counter(node.op_type for node in nodes) == {"Conv": 3, "Relu": 2, "Split": 1}


@pytest.mark.parametrize("transforms_first", [False, True])
def test_ranges_are_those_of_the_half_that_the_network_reads(
    transforms_first: bool, rng: np.random.Generator
) -> None:
    def change(coupling: FoldedCoupling) -> FoldedCoupling:
        return replace(coupling, mask=Halves(transforms_first))

    glow = with_couplings(fold_glow(random_glow(levels=1, steps_per_level=1, channels=3)), change)
    images = random_images(rng, glow, 8)
    step = glow.levels[0].steps[0]
    x = torch.from_numpy(images / 256 + dequantization_noise(0, images) / 256 - 0.5).permute(0, 3, 1, 2)
    mixed = FoldedConv(step.matrix[:, :, None, None], step.bias).apply(Squeeze()(x)[0])
    passive, _ = step.coupling.mask.split(mixed)
    measured = calibrate("int8", glow, images).ranges["level1.step1"].input
    np.testing.assert_allclose(measured, passive.abs().amax((0, 2, 3)), rtol=1e-5)


def test_int8_that_loses_too_much_in_every_network_is_refused(
    trained: FoldedGlow, validation: UInt8Array
) -> None:
    glow = with_networks(trained, _sensitive)
    with pytest.raises(
        ExportError,
        match=r"int8 loses .* bits/dim in (level\d.step|pixels.coupling)\d and more .* 0\.02 for all",
    ):
        calibrate("int8", glow, validation)


def test_int8_of_a_model_that_diverges_is_refused(trained: FoldedGlow, validation: UInt8Array) -> None:
    def diverge(network: FoldedNetwork) -> FoldedNetwork:
        return network._replace(last=replace(network.last, bias=np.full_like(network.last.bias, np.inf)))

    glow = with_networks(trained, diverge, "level1.step2")
    with pytest.raises(ExportError, match=r"^level1\.step2\.conv3 is not finite"):
        calibrate("int8", glow, validation)


def test_int8_without_images_is_refused(trained: FoldedGlow, validation: UInt8Array) -> None:
    with pytest.raises(ExportError, match="no images to calibrate"):
        calibrate("int8", trained, validation[:0])


def test_an_unknown_precision_is_refused(trained: FoldedGlow, validation: UInt8Array) -> None:
    with pytest.raises(ExportError, match="'int4'; it must be one of fp32, fp16, int8"):
        calibrate("int4", trained, validation)
