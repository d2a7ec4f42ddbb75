"""Coupling networks in float16 and int8: what their nodes compute, and which nodes have the precision."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from glowserve_export.builder import GraphBuilder, float_info
from glowserve_export.calibration import calibrate
from glowserve_export.convolution import FoldedConv, per_channel
from glowserve_export.couplings import FoldedNetwork
from glowserve_export.errors import ExportError
from glowserve_export.folded import FoldedGlow
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.graphs import forward_graph, reverse_graph
from glowserve_export.precision import FP16, Precision, Ranges
from glowserve_training.names import DEQUANTIZATION
from onnx import TensorProto, numpy_helper

from glowserve.runtime.ort import onnxruntime
from tests.export.interpreter import convolve, run_network
from tests.export.models import random_glow, random_images, run_graph
from tests.export.quantized import constants, network_nodes, with_networks

Array = np.ndarray[Any, Any]


# One network


def _random_network(rng: np.random.Generator, per_position: tuple[int, ...] = ()) -> FoldedNetwork:
    """2 channels to 6. The convolutions `per_position` have biases that depend on the position."""
    convs = []
    for i, (out, in_, kernel) in enumerate(((8, 2, 3), (8, 8, 1), (6, 8, 3))):
        weight = rng.standard_normal((out, in_, kernel, kernel)) * 0.3
        weight[0] = 0  # this channel is its bias
        convs.append(FoldedConv(weight, rng.standard_normal((out, 5, 5) if i in per_position else out)))
    return FoldedNetwork(*convs)


def _run_nodes(network: FoldedNetwork, x: Array, precision: Precision) -> Array:
    g = GraphBuilder()
    output = network.add(g, "x", "network", precision)
    model = g.model("network", [float_info("x", "N", 2, 5, 5)], [float_info(output, "N", 6, 5, 5)])
    result: Array = run_graph(model, x=x)[output]
    return result


def _ranges(network: FoldedNetwork, x: Array) -> Ranges:
    hidden1, hidden2, y = run_network(x, network)
    unbiased = y - per_channel(network[2].bias)
    return Ranges(
        np.abs(x).max(axis=(0, 2, 3)),
        (hidden1.max(), hidden2.max()),
        unbiased.min(axis=(0, 2, 3)),
        unbiased.max(axis=(0, 2, 3)),
    )


def _int8_in_float64(network: FoldedNetwork, ranges: Ranges, x: Array) -> Array:
    """The int8 network as specified, in float64: weights and activations are rounded, and nothing else."""
    first, second, last = network
    convs = []
    for conv, input_max in ((first, ranges.input), (second, np.ones(8)), (last, np.ones(8))):
        scaled = conv.weight * input_max[None, :, None, None]
        step = np.abs(scaled).max(axis=(1, 2, 3), keepdims=True) / 127
        step[step == 0] = 1
        convs.append(replace(conv, weight=np.rint(scaled / step) * step))
    x = np.clip(np.rint(x / per_channel(ranges.input) * 255), -255, 255) / 255
    for conv, largest in zip(convs[:2], ranges.hidden, strict=True):
        x = np.clip(np.rint(convolve(x, conv) / largest * 255), 0, 255) / 255 * largest
    center = per_channel((ranges.output_min + ranges.output_max) / 2)
    half_range = per_channel((ranges.output_max - ranges.output_min) / 2)
    half_range = np.where(half_range > 0, half_range, 1)
    unbiased = convolve(x, replace(convs[2], bias=np.zeros(6)))
    y = np.clip(np.rint((unbiased - center) / half_range * 255), -255, 255) / 255
    return y * half_range + center + per_channel(last.bias)


@pytest.mark.parametrize("per_position", [(), (2,), (0, 1, 2)], ids=["none", "last", "all"])
def test_int8_computes_what_is_specified(per_position: tuple[int, ...], rng: np.random.Generator) -> None:
    network = _random_network(rng, per_position)
    x = rng.standard_normal((64, 2, 5, 5))
    ranges = _ranges(network, x)
    x = (1.3 * x).astype(np.float32)  # some values are outside the ranges
    outputs = _run_nodes(network, x, Precision("int8", {"network": ranges}))
    expected = _int8_in_float64(network, ranges, x.astype(np.float64))
    bias = np.broadcast_to(per_channel(network[2].bias), outputs.shape)
    np.testing.assert_allclose(outputs[:, 0], bias[:, 0], atol=1e-5)
    byte = per_channel((ranges.output_max - ranges.output_min)[1:] / 510)
    errors = np.abs(outputs - expected)[:, 1:] / byte
    # A value may be so close to the middle between two bytes that float32 rounds it to the other one.
    assert (errors < 0.01).mean() > 0.97
    assert errors.max() < 5
    exact = run_network(x.astype(np.float64), network)[2]
    assert (np.abs(exact - expected) > 0.01 * np.abs(exact).max()).any(), "int8 must differ from float64"


def test_int8_represents_a_bias_that_is_far_larger_than_its_weights(rng: np.random.Generator) -> None:
    first, second, last = _random_network(rng)
    weight = first.weight.copy()
    weight[1] *= 1e-12
    network = FoldedNetwork(FoldedConv(weight, first.bias), second, last)
    x = rng.standard_normal((16, 2, 5, 5)).astype(np.float32)
    precision = Precision("int8", {"network": _ranges(network, x.astype(np.float64))})
    exact = run_network(x.astype(np.float64), network)[2]
    np.testing.assert_allclose(_run_nodes(network, x, precision), exact, atol=0.05 * np.abs(exact).max())


def test_int8_quantizes_a_network_whose_activations_are_all_zero(rng: np.random.Generator) -> None:
    first, second, last = _random_network(rng)
    zero, constant = FoldedConv(second.weight * 0, second.bias * 0), FoldedConv(last.weight * 0, last.bias)
    dead = FoldedNetwork(first, zero, constant)
    x = rng.standard_normal((4, 2, 5, 5)).astype(np.float32)
    precision = Precision("int8", {"network": _ranges(dead, 0 * x.astype(np.float64))})
    y = _run_nodes(dead, x, precision)
    np.testing.assert_allclose(y, np.broadcast_to(per_channel(last.bias), y.shape), rtol=1e-6)


@pytest.mark.parametrize("per_position", [(), (0, 2)], ids=["none", "first and last"])
def test_float16_computes_with_rounded_weights(
    per_position: tuple[int, ...], rng: np.random.Generator
) -> None:
    network = _random_network(rng, per_position)
    x = rng.standard_normal((16, 2, 5, 5)).astype(np.float32)
    rounded = (
        FoldedConv(conv.weight.astype(np.float16).astype(np.float64), conv.bias.astype(np.float16))
        for conv in network
    )
    expected = run_network(x.astype(np.float64), FoldedNetwork(*rounded))[2]
    outputs = _run_nodes(network, x, FP16)
    assert outputs.dtype == np.float32
    # A processor with float16 arithmetic also rounds the activations.
    np.testing.assert_allclose(outputs, expected, atol=3e-3 * np.abs(expected).max())
    g = GraphBuilder()
    network.add(g, "x", "network", FP16)
    for tensor in g.model("network", [], []).graph.initializer:
        conv = network[int(tensor.name[len("network.conv")]) - 1]
        exact = conv.weight if tensor.name.endswith("weight") else conv.bias
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), exact.astype(np.float16))


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_a_number_that_float16_cannot_represent_is_refused(kind: str) -> None:
    def enlarge(network: FoldedNetwork) -> FoldedNetwork:
        values = getattr(network[1], kind).copy()
        values.flat[3] = -7e4
        return network._replace(second=replace(network.second, **{kind: values}))

    glow = with_networks(fold_glow(random_glow()), enlarge, "level1.step2")
    for graph in (forward_graph, reverse_graph):
        with pytest.raises(
            ExportError, match=f"^level1.step2.conv2 has a {kind} of 7e.04, .* 65504; .*fp32$"
        ):
            graph(glow, FP16)


# Whole graphs


def _names(glow: FoldedGlow) -> list[str]:
    return [each.name for each in glow.flow_couplings()]


def test_both_graphs_have_the_same_networks(trained: FoldedGlow, int8: Precision) -> None:
    for precision in (FP16, int8):
        forward, reverse = forward_graph(trained, precision), reverse_graph(trained, precision)
        for step in _names(trained):
            ours, theirs = network_nodes(forward, step), network_nodes(reverse, step)
            assert len(ours) > 6, "conv, ReLU, conv, ReLU, conv, split, and casts or quantization"
            assert ours == theirs
            for name in {name for node in ours for name in node.input} & set(constants(forward)):
                assert constants(forward)[name] == constants(reverse)[name]


def test_float16_is_used_in_the_networks_only(trained: FoldedGlow) -> None:
    for model in (forward_graph(trained, FP16), reverse_graph(trained, FP16)):
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        inside = {
            name
            for step in _names(trained)
            for node in network_nodes(model, step)
            if node.op_type not in {"Cast", "Split"}
            for name in (*node.input, *node.output)
        }
        types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
        types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        half = {name for name, kind in types.items() if kind == TensorProto.FLOAT16}
        assert half == inside


def test_learned_noise_stays_float32(rng: np.random.Generator) -> None:
    glow = fold_glow(random_glow(dequantization="variational"))
    float32 = constants(forward_graph(glow))
    for precision in (FP16, calibrate("int8", glow, random_images(rng, glow, 8))):
        low = constants(forward_graph(glow, precision))
        of_noise = {name for name in float32 if name.startswith(DEQUANTIZATION)}
        assert of_noise
        assert all(low[name] == float32[name] for name in of_noise)
        assert {low[name].data_type for name in of_noise} == {TensorProto.FLOAT, TensorProto.INT64}
        assert any(name not in low or low[name] != float32[name] for name in set(float32) - of_noise)


def test_onnx_runtime_computes_every_convolution_of_an_int8_network_with_integers(
    trained: FoldedGlow, int8: Precision, tmp_path: Path
) -> None:
    networks, steps = len(_names(trained)), len(list(trained.named_steps()))
    assert len(int8.ranges) == networks
    for graph in (forward_graph, reverse_graph):
        optimized = _optimized(graph(trained, int8), tmp_path / "optimized.onnx")
        operators = Counter(node.op_type for node in optimized.graph.node)
        assert operators["QLinearConv"] == 3 * networks
        float32 = (
            trained.dequantization.couplings if graph is forward_graph and trained.dequantization else ()
        )
        assert operators["Conv"] + operators["FusedConv"] == steps + 1 + 3 * len(float32), (
            "1x1, and the prior"
        )
        assert operators["Relu"] == 0
        assert operators["QuantizeLinear"] == operators["DequantizeLinear"] == networks


def _optimized(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_every_kind_of_flow_runs_and_decodes_most_values_to_their_bins(
    name: str, case_glow: FoldedGlow, rng: np.random.Generator
) -> None:
    images = random_images(rng, case_glow, 8)
    precision = calibrate(name, case_glow, images)
    forward, reverse = forward_graph(case_glow, precision), reverse_graph(case_glow, precision)
    for model in (forward, reverse):
        onnx.checker.check_model(model, full_check=True)
    encoded = run_graph(forward, image=images, noise=np.full(images.shape, 0.5, np.float32))
    assert all(np.isfinite(values).all() for values in encoded.values())
    decoded = run_graph(reverse, latent=encoded["latent"])["image"]
    shift = 8 - case_glow.n_bits
    assert (decoded >> shift == images >> shift).mean() > 0.9
