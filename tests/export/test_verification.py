"""Verification finds a wrong number, in a graph or in the folded flow, and its message names the layer.

Each test changes one number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from glowserve_export.folded import FoldedGlow, FoldedStep
from glowserve_export.source import Source

from glowserve.images import UInt8Array
from tests.export.unpublished import add_to_constant, verification_error, verify_changed

HALF, NAN, HUGE = 0.5, np.nan, 1e30

Fails = Callable[..., str]


@pytest.fixture
def message(source: Source, digits: UInt8Array, tmp_path: Path) -> Fails:
    """Verifies changed graphs, `message(forward=...)`, and returns the error message."""
    return partial(verification_error, tmp_path, source.reference, source.glow, digits[:32])


@pytest.fixture
def message_of_flow(source: Source, digits: UInt8Array, tmp_path: Path) -> Fails:
    """Verifies the graphs of a changed flow against the unchanged model, and returns the error message."""

    def fail(change: Callable[[FoldedGlow], FoldedGlow]) -> str:
        return verification_error(tmp_path, source.reference, change(source.glow), digits[:32])

    return fail


def _with_step(
    level: int, step: int, change: Callable[[FoldedStep], FoldedStep]
) -> Callable[[FoldedGlow], FoldedGlow]:
    def changed(glow: FoldedGlow) -> FoldedGlow:
        levels = list(glow.levels)
        steps = list(levels[level - 1].steps)
        steps[step - 1] = change(steps[step - 1])
        levels[level - 1] = replace(levels[level - 1], steps=tuple(steps))
        return replace(glow, levels=tuple(levels))

    return changed


def test_nothing_is_found_in_unchanged_graphs(source: Source, digits: UInt8Array, tmp_path: Path) -> None:
    verification = verify_changed(tmp_path, source.reference, source.glow, digits[:128])
    assert verification.images == 128
    assert len(verification.checks) == 10


@pytest.mark.parametrize(
    ("constant", "amount", "layer"),
    [
        ("level1.step1.mix.bias", HALF, "level1.step1"),
        ("level1.step2.mix.weight", HALF, "level1.step2"),
        ("level1.step2.mix.weight", NAN, "level1.step2"),
        ("level1.step2.mix.weight", HUGE, "level1.step2"),
        ("level1.step4.conv1.weight", HALF, "level1.step4"),
        ("level2.step1.conv2.weight", HALF, "level2.step1"),
        ("level2.step3.conv3.bias", NAN, "level2.step3"),
        ("level2.step4.conv3.bias", 0.01, "level2.step4"),
        ("pixels.coupling1.bound", HALF, "pixels.coupling1"),
        ("pixels.coupling2.conv1.weight", HALF, "pixels.coupling2"),
        ("pixels.coupling4.conv3.bias", NAN, "pixels.coupling4"),
        ("logit.margin", HALF, "image.planes"),
        ("logit.minus_log_range", HALF, "the log-determinants"),
        ("level1.prior.conv.bias", HALF, "level1.latent"),
        ("top.offset", HALF, "level2.latent"),
        ("log_det_constant", HALF, "the log-determinants"),
        ("log_prior.constant", HALF, "the log-determinants"),
    ],
)
def test_a_wrong_number_in_the_forward_graph_is_found_in_its_layer(
    constant: str, amount: float, layer: str, message: Fails
) -> None:
    text = message(forward=add_to_constant(constant, amount))
    assert text.startswith("log-likelihood, relative error is ")
    assert "must be at most 1e-05" in text
    assert f"the layer to look at is {layer} of forward.onnx." in text
    assert "Nothing was written" in text


@pytest.mark.parametrize(
    ("constant", "amount", "layer"),
    [
        ("level1.step1.bias", HALF, "level1.step1"),
        ("level1.step2.weight", HALF, "level1.step2"),
        ("level1.step2.weight", NAN, "level1.step2"),
        ("level1.step2.weight", HUGE, "level1.step2"),
        ("level1.step4.conv1.weight", HALF, "level1.step4"),
        ("level2.step1.conv3.bias", NAN, "level2.step1"),
        ("level2.step4.bias", HALF, "level2.step4"),
        ("level1.prior.conv.bias", HALF, "level1.prior.joined"),
        ("top.mean", HALF, "top.z"),
        ("pixels.coupling4.conv3.bias", NAN, "pixels.coupling4"),
        ("logit.margin", HALF, "pixels"),
    ],
)
def test_a_wrong_number_in_the_reverse_graph_is_found_in_its_layer(
    constant: str, amount: float, layer: str, message: Fails
) -> None:
    text = message(reverse=add_to_constant(constant, amount))
    assert text.startswith("round trip, values changed is ")
    assert "must be at most 0;" in text
    assert f"the layer to look at is {layer} of reverse.onnx." in text


def test_an_error_that_moves_pixels_inside_their_bins_is_found(message: Fails) -> None:
    # A fiftieth of a bin: every value of an encoded image is still decoded to its bin.
    text = message(reverse=add_to_constant("logit.margin", 0.02))
    assert text.startswith("decoding, error in grey values is 0.32 and must be at most 0.1;")
    assert "pixels of reverse.onnx" in text


def test_latents_in_another_order_are_found(message: Fails) -> None:
    def swap(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if list(node.output) == ["latent"])
        node.input.reverse()

    # The likelihood is right; only decoding shows the error.
    text = message(forward=swap)
    assert text.startswith("round trip, values changed is ")
    assert "the layer to look at is latent of forward.onnx." in text


def test_a_network_that_is_wrong_in_both_graphs_is_found_although_they_invert_each_other(
    message_of_flow: Fails,
) -> None:
    def change(step: FoldedStep) -> FoldedStep:
        network = step.coupling.network
        wrong = network._replace(second=replace(network.second, bias=network.second.bias + 0.1))
        return replace(step, coupling=replace(step.coupling, network=wrong))

    text = message_of_flow(_with_step(2, 3, change))
    assert text.startswith("log-likelihood, relative error is ")
    assert "level2.step3 of forward.onnx" in text


def test_a_wrong_inverse_matrix_is_found(message_of_flow: Fails) -> None:
    def change(step: FoldedStep) -> FoldedStep:
        return replace(step, inverse_matrix=step.inverse_matrix * 1.02)

    text = message_of_flow(_with_step(1, 3, change))
    assert text.startswith("worst |W W^-1 - I| is 0.02 and must be at most 0.01;")
    assert "the layer to look at is level1.step3." in text


def test_a_matrix_that_its_actnorm_makes_nearly_singular_is_found(message_of_flow: Fails) -> None:
    def change(step: FoldedStep) -> FoldedStep:
        scale = np.ones(step.channels)
        scale[1] = 1e-8
        return replace(step, matrix=step.matrix * scale, inverse_matrix=step.inverse_matrix / scale[:, None])

    text = message_of_flow(_with_step(2, 1, change))
    assert re.match(r"worst condition number is \S+e\+0[789] and must be at most 1e\+06;", text)
    assert "the layer to look at is level2.step1." in text


def test_images_without_a_finite_value_are_counted(message: Fails) -> None:
    text = message(forward=add_to_constant("level1.step2.mix.weight", NAN))
    assert "relative error is not finite for 32 of 32 images and must be at most" in text


@pytest.mark.parametrize("amount", [0.1, NAN])
def test_a_wrong_constant_log_determinant_is_found(amount: float, message_of_flow: Fails) -> None:
    text = message_of_flow(lambda glow: replace(glow, log_det_constant=glow.log_det_constant + amount))
    assert text.startswith("log-likelihood, relative error is ")
    assert "the layer to look at is the log-determinants of forward.onnx." in text
