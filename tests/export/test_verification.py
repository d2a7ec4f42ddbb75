"""The proof before publication: whatever is wrong in a graph ends the export, and the message says where.

One number is changed at a time, in a graph or in what both graphs are made of.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import glowserve_export.bundle
import glowserve_export.source
import numpy as np
import onnx
import pytest
from glowserve_export.bundle import export as export_source
from glowserve_export.errors import VerificationError
from glowserve_export.folded import FoldedGlow, FoldedStep
from glowserve_export.precision import Precision
from glowserve_export.source import load_glowserve_checkpoint
from onnx import numpy_helper

from glowserve.runtime.repository import Bundle


def export_checkpoint(checkpoint: Path, model_dir: Path, **options: Any) -> Bundle:
    """Exports what `glowserve train` left."""
    return export_source(load_glowserve_checkpoint(checkpoint), model_dir, **options)


Fails = Callable[[], str]

HALF, NAN, HUGE = 0.5, np.nan, 1e30


@pytest.fixture
def message(checkpoint: Path, tmp_path: Path) -> Fails:
    """Exports, and returns what the VerificationError says; nothing may be left."""

    def fail() -> str:
        with pytest.raises(VerificationError) as raised:
            export_checkpoint(checkpoint, tmp_path / "digits")
        assert list(tmp_path.iterdir()) == []
        return str(raised.value)

    return fail


def _change_constant(monkeypatch: pytest.MonkeyPatch, writer: str, constant: str, amount: float) -> None:
    """Makes `writer`, of glowserve_export.bundle, add `amount` to the middle element of a constant of the graph."""
    write = getattr(glowserve_export.bundle, writer)

    def write_changed(glow: FoldedGlow, precision: Precision) -> onnx.ModelProto:
        model: onnx.ModelProto = write(glow, precision)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == constant)
        array = numpy_helper.to_array(tensor).copy()
        array.reshape(-1)[array.size // 2] += amount
        tensor.CopyFrom(numpy_helper.from_array(array, constant))
        return model

    monkeypatch.setattr(glowserve_export.bundle, writer, write_changed)


def _change_baked(monkeypatch: pytest.MonkeyPatch, change: Callable[[FoldedGlow], FoldedGlow]) -> None:
    """Makes `bake`, of glowserve_export.source, return something else."""
    bake = glowserve_export.source.fold_glow
    monkeypatch.setattr(glowserve_export.source, "fold_glow", lambda model: change(fold_glow(model)))


def _change_step(
    monkeypatch: pytest.MonkeyPatch, level: int, step: int, change: Callable[[FoldedStep], FoldedStep]
) -> None:
    def changed(glow: FoldedGlow) -> FoldedGlow:
        levels = list(glow.levels)
        steps = list(levels[level - 1].steps)
        steps[step - 1] = change(steps[step - 1])
        levels[level - 1] = replace(levels[level - 1], steps=tuple(steps))
        return replace(glow, levels=tuple(levels))

    _change_baked(monkeypatch, changed)


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
        ("level2.step4.conv2.weight", 0.01, "level2.step4"),
        ("level1.prior.conv.bias", HALF, "level1.latent"),
        ("top.offset", HALF, "level2.latent"),
        ("log_det_constant", HALF, "the log-determinants"),
        ("log_prior.constant", HALF, "the log-determinants"),
    ],
)
def test_a_wrong_number_in_the_forward_graph_is_found_in_its_layer(
    constant: str, amount: float, layer: str, message: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    _change_constant(monkeypatch, "forward_graph", constant, amount)
    text = message()
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
        ("half", HALF, "pixels"),
    ],
)
def test_a_wrong_number_in_the_reverse_graph_is_found_in_its_layer(
    constant: str, amount: float, layer: str, message: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    _change_constant(monkeypatch, "reverse_graph", constant, amount)
    text = message()
    assert text.startswith("round trip, values changed is ")
    assert "must be at most 0;" in text
    assert f"the layer to look at is {layer} of reverse.onnx." in text


def test_an_error_that_moves_pixels_inside_their_bins_is_found_too(
    message: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fifth of a bin: every value of an encoded image still rounds to where it was.
    _change_constant(monkeypatch, "reverse_graph", "half", 0.2 / 16)
    text = message()
    assert text.startswith("decoding, error in grey values is 3.2 and must be at most 0.1;")
    assert "pixels of reverse.onnx" in text


def test_latents_in_another_order_are_found(message: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    write = glowserve_export.bundle.forward_graph

    def write_swapped(glow: FoldedGlow, precision: Precision) -> onnx.ModelProto:
        model = write(glow, precision)
        node = next(node for node in model.graph.node if list(node.output) == ["latent"])
        node.input.reverse()
        return model

    monkeypatch.setattr(glowserve_export.bundle, "forward_graph", write_swapped)
    # Their likelihood is right; only decoding shows it.
    text = message()
    assert text.startswith("round trip, values changed is ")
    assert "the layer to look at is latent of forward.onnx." in text


def test_a_network_that_is_wrong_in_both_graphs_is_found_although_they_undo_each_other(
    message: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(step: FoldedStep) -> FoldedStep:
        first, second, last = step.network
        return replace(step, network=(first, replace(second, bias=second.bias + 0.1), last))

    _change_step(monkeypatch, 2, 3, change)
    text = message()
    assert text.startswith("log-likelihood, relative error is ")
    assert "level2.step3 of forward.onnx" in text


def test_an_inverse_that_is_none_is_found_before_anything_is_run(
    message: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    _change_step(monkeypatch, 1, 3, lambda step: replace(step, inverse_matrix=step.inverse_matrix * 1.02))
    text = message()
    assert text.startswith("worst |W W^-1 - I| is 0.02 and must be at most 0.01;")
    assert "the layer to look at is level1.step3." in text


def test_a_matrix_made_singular_by_its_actnorm_is_found(
    message: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(step: FoldedStep) -> FoldedStep:
        scale = np.ones(step.channels)
        scale[1] = 1e-8
        return replace(step, matrix=step.matrix * scale, inverse_matrix=step.inverse_matrix / scale[:, None])

    _change_step(monkeypatch, 2, 1, change)
    text = message()
    assert re.match(r"worst condition number is \S+e\+0[789] and must be at most 1e\+06;", text)
    assert "the layer to look at is level2.step1." in text


@pytest.mark.parametrize("amount", [0.1, NAN])
def test_a_wrong_constant_log_determinant_is_found(
    amount: float, message: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    _change_baked(monkeypatch, lambda glow: replace(glow, log_det_constant=glow.log_det_constant + amount))
    text = message()
    assert text.startswith("log-likelihood, relative error is ")
    assert "the layer to look at is the log-determinants of forward.onnx." in text


def test_nothing_is_found_where_nothing_was_changed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _change_constant(monkeypatch, "forward_graph", "level1.step2.mix.weight", 0.0)
    _change_constant(monkeypatch, "reverse_graph", "level1.step2.weight", 0.0)
    _change_step(monkeypatch, 1, 1, lambda step: step)
    assert export_checkpoint(checkpoint, tmp_path / "digits").manifest.version == 1
