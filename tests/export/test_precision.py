"""Low precision: the coupling networks alone, the same in both graphs, and little likelihood lost."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from glowserve_export.calibration import INT8_BOUND, calibrate
from glowserve_export.errors import ExportError
from glowserve_export.folded import (
    DEQUANTIZATION,
    FoldedConv,
    FoldedGlow,
    FoldedLevel,
    FoldedNetwork,
    FoldedStep,
)
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.graphs import forward_graph, reverse_graph
from glowserve_export.graphs.builder import GraphBuilder
from glowserve_export.graphs.networks import coupling_network
from glowserve_export.precision import (
    FP16,
    FP32,
    Precision,
    Ranges,
)
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.data import load_held_out
from glowserve_training.model import Glow
from glowserve_training.names import step_name
from onnx import TensorProto, helper, numpy_helper

from glowserve.images import UInt8Array
from glowserve.runtime.randomness import dequantization_noise, latents

Array = np.ndarray[Any, Any]
RandomGlow = Callable[..., Glow]
RunGraph = Callable[..., dict[str, Array]]

# The SHA-256 of both float32 graphs of `_plain_glow`: low precision has changed nothing about them. Whoever changes
# what a float32 graph is made of on purpose changes these.
FORWARD_DIGEST = "8c0064c1e2be4047e643cc67085f0d44295a221336f4fb4a30161571d5e2e543"
REVERSE_DIGEST = "9dfb9014937ac916e6c6650e937b8e3a5c95c683546cd9a60b3fbb1c4f23c990"


@pytest.fixture(scope="module")
def trained(checkpoint: Path) -> FoldedGlow:
    """The small model of digits."""
    return fold_glow(load_checkpoint(checkpoint).model)


@pytest.fixture(scope="module")
def validation(checkpoint: Path) -> UInt8Array:
    """Digits that the model was neither trained on nor is measured on here."""
    return load_held_out(load_checkpoint(checkpoint).data).validation


@pytest.fixture(scope="module")
def int8(trained: FoldedGlow, validation: UInt8Array) -> Precision:
    """That model's."""
    return calibrate("int8", trained, validation)


def _plain_glow() -> FoldedGlow:
    """A flow of numbers that are the same on every machine."""

    def numbers(*shape: int) -> Array:
        return (np.arange(np.prod(shape)) % 7 - 3.0).reshape(shape) / 16

    eye = np.eye(4)
    network = (
        FoldedConv(numbers(3, 2, 3, 3), numbers(3)),
        FoldedConv(numbers(3, 3, 1, 1), numbers(3)),
        FoldedConv(numbers(4, 3, 3, 3), numbers(4)),
    )
    step = FoldedStep(2 * eye, numbers(4), eye / 2, -numbers(4) / 2, network, affine=True)
    level = FoldedLevel((step, step), None)
    return FoldedGlow(4, 1, 8, (level,), np.zeros(4), np.zeros(4), 1.0)


def _network_nodes(model: onnx.ModelProto, step: str) -> list[onnx.NodeProto]:
    """The nodes between what a coupling network reads and its shift and logit, in order."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    found: dict[str, onnx.NodeProto] = {}
    open_ = [f"{step}.shift_logit.0"]
    while open_:
        name = open_.pop()
        node = made_by.get(name)
        if node is None or name == f"{step}.halves.0" or node.name in found:
            continue
        found[node.name] = node
        open_ += node.input
    return [node for node in model.graph.node if node.name in found]


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _optimized(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


def _bits(run: RunGraph, glow: FoldedGlow, precision: Precision, images: UInt8Array) -> Array:
    noise = dequantization_noise(0, images)
    nats = run(forward_graph(glow, precision), image=images, noise=noise)["log_likelihood"]
    return -nats.astype(np.float64) / (glow.dimensions * np.log(2))


# float32


def test_float32_graphs_are_what_they_were() -> None:
    glow = _plain_glow()
    for graph, digest in ((forward_graph, FORWARD_DIGEST), (reverse_graph, REVERSE_DIGEST)):
        data = graph(glow).SerializeToString(deterministic=True)
        assert hashlib.sha256(data).hexdigest() == digest
        assert graph(glow, FP32).SerializeToString(deterministic=True) == data


# Both graphs


def test_both_graphs_hold_the_same_networks(trained: FoldedGlow, int8: Precision) -> None:
    for precision in (FP16, int8):
        forward, reverse = forward_graph(trained, precision), reverse_graph(trained, precision)
        for step, _ in trained.named_steps():
            ours, theirs = _network_nodes(forward, step), _network_nodes(reverse, step)
            assert len(ours) > 6, "conv, ReLU, conv, ReLU, conv, split, and casts or bytes"
            assert ours == theirs
            for name in {name for node in ours for name in node.input} & set(_constants(forward)):
                assert _constants(forward)[name] == _constants(reverse)[name]


def test_only_the_networks_know_float16(trained: FoldedGlow) -> None:
    for model in (forward_graph(trained, FP16), reverse_graph(trained, FP16)):
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        inside = {
            name
            for step, _ in trained.named_steps()
            for node in _network_nodes(model, step)
            if node.op_type not in {"Cast", "Split"}
            for name in (*node.input, *node.output)
        }
        types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
        types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        half = {name for name, kind in types.items() if kind == TensorProto.FLOAT16}
        assert half == inside


def test_the_same_images_give_the_same_bytes(
    trained: FoldedGlow, validation: UInt8Array, int8: Precision
) -> None:
    again = calibrate("int8", trained, validation)
    for graph in (forward_graph, reverse_graph):
        first, second = (graph(trained, precision).SerializeToString() for precision in (int8, again))
        assert first == second


def test_learned_noise_stays_float32(random_glow: RandomGlow, rng: np.random.Generator) -> None:
    glow = fold_glow(random_glow(dequantization="variational"))
    images = rng.integers(0, 256, (8, 8, 8, 1), np.uint8)
    usual = _constants(forward_graph(glow))
    for precision in (FP16, calibrate("int8", glow, images)):
        constants = _constants(forward_graph(glow, precision))
        of_noise = {name for name in usual if name.startswith(DEQUANTIZATION)}
        assert of_noise
        assert all(constants[name] == usual[name] for name in of_noise)
        assert {constants[name].data_type for name in of_noise} == {TensorProto.FLOAT, TensorProto.INT64}
        assert any(name not in constants or constants[name] != usual[name] for name in set(usual) - of_noise)


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_every_kind_of_flow_runs_and_comes_back(
    name: str, case: dict[str, Any], random_glow: RandomGlow, run_graph: RunGraph, rng: np.random.Generator
) -> None:
    glow = fold_glow(random_glow(**case))
    images = rng.integers(0, 256, (8, glow.image_size, glow.image_size, glow.channels), np.uint8)
    precision = calibrate(name, glow, images)
    forward, reverse = forward_graph(glow, precision), reverse_graph(glow, precision)
    for model in (forward, reverse):
        onnx.checker.check_model(model, full_check=True)
    encoded = run_graph(forward, image=images, noise=np.full(images.shape, 0.5, np.float32))
    assert all(np.isfinite(values).all() for values in encoded.values())
    decoded = run_graph(reverse, latent=encoded["latent"])["image"]
    shift = 8 - glow.n_bits
    assert (decoded >> shift == images >> shift).mean() > 0.9


# What it costs


def test_a_trained_model_loses_little_and_its_images_return(
    trained: FoldedGlow, int8: Precision, digits: UInt8Array, run_graph: RunGraph
) -> None:
    usual = _bits(run_graph, trained, FP32, digits)
    for precision, bound in ((FP16, 1e-3), (int8, INT8_BOUND)):
        assert abs((_bits(run_graph, trained, precision, digits) - usual).mean()) <= bound
        noise = np.full(digits.shape, 0.5, np.float32)
        latent = run_graph(forward_graph(trained, precision), image=digits, noise=noise)["latent"]
        decoded = run_graph(reverse_graph(trained, precision), latent=latent)["image"]
        shift = 8 - trained.n_bits
        assert (decoded >> shift == digits >> shift).mean() > 0.95
        drawn = latents(0, 0, 16, trained.dimensions)
        assert np.isfinite(run_graph(reverse_graph(trained, precision), latent=drawn)["pixels"]).all()


def test_every_convolution_of_a_network_is_one_of_integers(
    trained: FoldedGlow, int8: Precision, tmp_path: Path
) -> None:
    steps = len(list(trained.named_steps()))
    assert len(int8.ranges) == steps
    for graph, others in ((forward_graph, 1), (reverse_graph, 1)):  # the prior of what splits off
        operators = Counter(
            node.op_type for node in _optimized(graph(trained, int8), tmp_path / "o.onnx").graph.node
        )
        assert operators["QLinearConv"] == 3 * steps
        assert operators["Conv"] == steps + others, "the 1x1 convolutions of the flow"
        assert operators["Relu"] == 0
        assert operators["QuantizeLinear"] == operators["DequantizeLinear"] == steps


def test_a_network_that_costs_too_much_stays_float32(
    trained: FoldedGlow, validation: UInt8Array, run_graph: RunGraph
) -> None:
    glow = _with_network(trained, _sensitive, "level1.step2")
    precision = calibrate("int8", glow, validation)
    assert set(dict(glow.named_steps())) - set(precision.ranges) == {"level1.step2"}
    usual = _bits(run_graph, glow, FP32, validation)
    assert (_bits(run_graph, glow, precision, validation) - usual).mean() <= INT8_BOUND
    operators = Counter(
        node.op_type for node in _network_nodes(forward_graph(glow, precision), "level1.step2")
    )
    assert operators == {"Conv": 3, "Relu": 2, "Split": 1}


def _sensitive(network: FoldedNetwork) -> FoldedNetwork:
    """A hidden channel that does nothing is so large that a byte of it is more than all others."""
    first, second, last = network
    bias, weight = second.bias.copy(), last.weight.copy()
    bias[0], weight[:, 0] = 1e4, 0
    return first, replace(second, bias=bias), replace(last, weight=weight)


def _with_network(
    glow: FoldedGlow, change: Callable[[FoldedNetwork], FoldedNetwork], *changed: str
) -> FoldedGlow:
    """With other networks in these steps."""
    steps = {
        name: replace(step, network=change(step.network)) if name in changed else step
        for name, step in glow.named_steps()
    }
    levels = [
        replace(level, steps=tuple(steps[step_name(i, k)] for k, _ in enumerate(level.steps, 1)))
        for i, level in enumerate(glow.levels, 1)
    ]
    return replace(glow, levels=tuple(levels))


# What the networks compute


def _random_network(rng: np.random.Generator, maps: tuple[int, ...] = ()) -> FoldedNetwork:
    """2 channels to 6, with biases that differ from place to place in the convolutions `maps`."""
    convs = []
    for i, (out, in_, kernel) in enumerate(((8, 2, 3), (8, 8, 1), (6, 8, 3))):
        weight = rng.standard_normal((out, in_, kernel, kernel)) * 0.3
        weight[0] = 0  # a channel of the bias alone
        convs.append(FoldedConv(weight, rng.standard_normal((out, 5, 5) if i in maps else out)))
    return convs[0], convs[1], convs[2]


def _run_network(network: FoldedNetwork, x: Array, precision: Precision, run: RunGraph) -> Array:
    g = GraphBuilder()
    (output,) = coupling_network(g, "x", network, 6, "network", affine=False, precision=precision)
    value = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", c, 5, 5])
        for name, c in (("x", 2), (output, 6))
    ]
    result: Array = run(g.model("network", value[:1], value[1:]), x=x)[output]
    return result


def _conv(x: Array, weight: Array) -> Array:
    kernel = weight.shape[2]
    border = ((0, 0), (0, 0), (kernel // 2,) * 2, (kernel // 2,) * 2)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, border), (kernel, kernel), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weight)


def _planes(values: Array) -> Array:
    return values if values.ndim == 3 else values[:, None, None]


def _as_written(network: FoldedNetwork, x: Array) -> tuple[Array, Array, Array]:
    """Behind either ReLU, and the output, in float64."""
    first, second, last = network
    hidden1 = np.maximum(_conv(x, first.weight) + _planes(first.bias), 0)
    hidden2 = np.maximum(_conv(hidden1, second.weight) + _planes(second.bias), 0)
    return hidden1, hidden2, _conv(hidden2, last.weight) + _planes(last.bias)


def _ranges(network: FoldedNetwork, x: Array) -> Ranges:
    hidden1, hidden2, y = _as_written(network, x)
    unbiased = y - _planes(network[2].bias)
    return Ranges(
        np.abs(x).max(axis=(0, 2, 3)),
        (hidden1.max(), hidden2.max()),
        unbiased.min(axis=(0, 2, 3)),
        unbiased.max(axis=(0, 2, 3)),
    )


def _in_bytes(network: FoldedNetwork, ranges: Ranges, x: Array) -> Array:
    """What int8 is meant to compute, in float64: rounding where it is, and nothing else."""
    first, second, last = network
    weights = []
    for conv, scaled_in in ((first, ranges.input), (second, np.ones(8)), (last, np.ones(8))):
        by_read = conv.weight * scaled_in[None, :, None, None]
        step = np.abs(by_read).max(axis=(1, 2, 3), keepdims=True) / 127
        step[step == 0] = 1
        weights.append(np.rint(by_read / step) * step)
    x = np.clip(np.rint(x / _planes(ranges.input) * 255), -255, 255) / 255
    for weight, conv, reach in zip(weights[:2], (first, second), ranges.hidden, strict=True):
        x = _conv(x, weight) + _planes(conv.bias)
        x = np.clip(np.rint(x / reach * 255), 0, 255) / 255 * reach
    middle, reach3 = (ranges.output_min + ranges.output_max) / 2, (ranges.output_max - ranges.output_min) / 2
    reach3 = np.where(reach3 > 0, reach3, 1)
    y = (_conv(x, weights[2]) - _planes(middle)) / _planes(reach3)
    y = np.clip(np.rint(y * 255), -255, 255) / 255
    return y * _planes(reach3) + _planes(middle) + _planes(last.bias)


@pytest.mark.parametrize("maps", [(), (2,), (0, 1, 2)], ids=["plain", "map at the end", "maps everywhere"])
def test_int8_computes_what_its_description_says(
    maps: tuple[int, ...], run_graph: RunGraph, rng: np.random.Generator
) -> None:
    network = _random_network(rng, maps)
    x = rng.standard_normal((64, 2, 5, 5))
    ranges = _ranges(network, x)
    x = (1.3 * x).astype(np.float32)  # some of it is beyond the ranges
    ours = _run_network(network, x, Precision("int8", {"network": ranges}), run_graph)
    expected = _in_bytes(network, ranges, x.astype(np.float64))
    bias = np.broadcast_to(_planes(network[2].bias), ours.shape)
    np.testing.assert_allclose(ours[:, 0], bias[:, 0], atol=1e-5)
    steps = np.abs(ours - expected)[:, 1:] / _planes((ranges.output_max - ranges.output_min)[1:] / 510)
    # A value may lie so near the middle of two bytes that float32 goes the other way, here and there.
    assert (steps < 0.01).mean() > 0.97
    assert steps.max() < 5
    exact = _as_written(network, x.astype(np.float64))[2]
    assert (np.abs(exact - expected) > 0.01 * np.abs(exact).max()).any(), (
        "bytes ought to be told from float32"
    )


def test_a_bias_that_is_vast_beside_its_weights_fits(run_graph: RunGraph, rng: np.random.Generator) -> None:
    first, second, last = _random_network(rng)
    weight = first.weight.copy()
    weight[1] *= 1e-12
    network = (FoldedConv(weight, first.bias), second, last)
    x = rng.standard_normal((16, 2, 5, 5)).astype(np.float32)
    precision = Precision("int8", {"network": _ranges(network, x.astype(np.float64))})
    exact = _as_written(network, x.astype(np.float64))[2]
    np.testing.assert_allclose(
        _run_network(network, x, precision, run_graph), exact, atol=0.05 * np.abs(exact).max()
    )


def test_a_network_that_never_yields_anything_can_be_quantized(
    run_graph: RunGraph, rng: np.random.Generator
) -> None:
    first, second, last = _random_network(rng)
    dead = (first, FoldedConv(second.weight * 0, second.bias * 0), FoldedConv(last.weight * 0, last.bias))
    x = rng.standard_normal((4, 2, 5, 5)).astype(np.float32)
    precision = Precision("int8", {"network": _ranges(dead, 0 * x.astype(np.float64))})
    y = _run_network(dead, x, precision, run_graph)
    np.testing.assert_allclose(y, np.broadcast_to(_planes(last.bias), y.shape), rtol=1e-6)


@pytest.mark.parametrize("maps", [(), (0, 2)], ids=["plain", "maps"])
def test_float16_computes_with_rounded_weights(
    maps: tuple[int, ...], run_graph: RunGraph, rng: np.random.Generator
) -> None:
    network = _random_network(rng, maps)
    x = rng.standard_normal((16, 2, 5, 5)).astype(np.float32)
    rounded = tuple(
        FoldedConv(conv.weight.astype(np.float16).astype(np.float64), conv.bias.astype(np.float16))
        for conv in network
    )
    expected = _as_written((rounded[0], rounded[1], rounded[2]), x.astype(np.float64))[2]
    ours = _run_network(network, x, FP16, run_graph)
    assert ours.dtype == np.float32
    # A processor without float16 rounds weights and less often what they are multiplied with.
    np.testing.assert_allclose(ours, expected, atol=3e-3 * np.abs(expected).max())
    g = GraphBuilder()
    coupling_network(g, "x", network, 6, "network", affine=False, precision=FP16)
    for tensor in g.model("network", [], []).graph.initializer:
        conv = network[int(tensor.name[len("network.conv")]) - 1]
        exact = conv.weight if tensor.name.endswith("weight") else conv.bias
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), exact.astype(np.float16))


# What is refused


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_what_float16_cannot_hold_is_refused(kind: str, random_glow: RandomGlow) -> None:
    def enlarge(network: FoldedNetwork) -> FoldedNetwork:
        values = getattr(network[1], kind).copy()
        values.flat[3] = -7e4
        return network[0], replace(network[1], **{kind: values}), network[2]

    glow = _with_network(fold_glow(random_glow()), enlarge, "level1.step2")
    for graph in (forward_graph, reverse_graph):
        with pytest.raises(
            ExportError, match=f"^level1.step2.conv2 has a {kind} of 7e.04, .* 65504; .*fp32$"
        ):
            graph(glow, FP16)


def test_an_unknown_precision_is_refused(trained: FoldedGlow, validation: UInt8Array) -> None:
    with pytest.raises(ExportError, match="'int4'; it must be one of fp32, fp16, int8"):
        calibrate("int4", trained, validation)


def test_int8_without_images_is_refused(trained: FoldedGlow, validation: UInt8Array) -> None:
    with pytest.raises(ExportError, match="no images to calibrate"):
        calibrate("int8", trained, validation[:0])


def test_int8_of_a_model_that_diverges_is_refused(trained: FoldedGlow, validation: UInt8Array) -> None:
    def diverge(network: FoldedNetwork) -> FoldedNetwork:
        return network[0], network[1], replace(network[2], bias=np.full_like(network[2].bias, np.inf))

    glow = _with_network(trained, diverge, "level1.step2")
    with pytest.raises(ExportError, match=r"^level1\.step2\.conv3 is not finite"):
        calibrate("int8", glow, validation)


def test_int8_that_costs_too_much_everywhere_is_refused(trained: FoldedGlow, validation: UInt8Array) -> None:
    glow = _with_network(trained, _sensitive, *dict(trained.named_steps()))
    with pytest.raises(ExportError, match=r"int8 costs .* bits/dim in level\d.step\d, and more .*0.02"):
        calibrate("int8", glow, validation)
