"""Coupling networks, in float64 and as nodes in each precision. Input and output of the nodes are float32."""

from __future__ import annotations

from functools import singledispatch
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
from glowserve_training.layers import HiddenConv2d, ZeroConv2d
from glowserve_training.layers import networks as trained
from onnx import TensorProto
from torch import Tensor, nn

from glowserve_export.builder import GraphBuilder
from glowserve_export.convolution import FoldedConv
from glowserve_export.errors import no_folded_form
from glowserve_export.precision import (
    BYTE_SCALE,
    FP32,
    Precision,
    QuantizedConv,
    QuantizedNetwork,
    check_float16,
    quantize,
)


class FoldedNetwork(NamedTuple):
    """Convolution, ReLU, convolution, ReLU, convolution."""

    first: FoldedConv
    """[hidden, in, 3, 3]."""

    second: FoldedConv
    """[hidden, hidden, 1, 1]."""

    last: FoldedConv
    """[out, hidden, 3, 3]."""

    def outputs(self, x: Tensor) -> Tensor:
        """[N, in, H, W] to [N, out, H, W], both float64."""
        return self.last.apply(self.second.apply(self.first.apply(x).relu()).relu())

    def add(self, g: GraphBuilder, x: str, name: str, precision: Precision = FP32) -> str:
        """The nodes of `outputs`.

        Raises:
            ExportError: the precision is fp16 and a weight or bias is too large for float16.
        """
        if name in precision.ranges:
            return _int8_network(g, x, quantize(self, precision.ranges[name]), name)
        if precision.name == "fp16":
            return _fp16_network(g, x, self, name)
        return _float_network(g, x, self, name)


@singledispatch
def fold_network(network: nn.Module) -> FoldedNetwork:
    """Folds a coupling network of training."""
    raise no_folded_form(network)


@fold_network.register
def _(network: trained.CouplingNetwork) -> FoldedNetwork:
    first, _, second, _, last = network
    return FoldedNetwork(
        FoldedConv.of(cast("HiddenConv2d", first)),
        FoldedConv.of(cast("HiddenConv2d", second)),
        FoldedConv.of(cast("ZeroConv2d", last)),
    )


def _float_network(
    g: GraphBuilder, x: str, network: FoldedNetwork, name: str, dtype: npt.DTypeLike = np.float32
) -> str:
    first, second, last = network
    x = g.conv(x, first, f"{name}.conv1", dtype)
    x = g.add("Relu", [x], f"{name}.relu1")
    x = g.conv(x, second, f"{name}.conv2", dtype)
    x = g.add("Relu", [x], f"{name}.relu2")
    return g.conv(x, last, f"{name}.conv3", dtype)


def _fp16_network(g: GraphBuilder, x: str, network: FoldedNetwork, name: str) -> str:
    for i, conv in enumerate(network, 1):
        check_float16(conv, f"{name}.conv{i}")
    x = g.add("Cast", [x], f"{name}.half", to=TensorProto.FLOAT16)
    x = _float_network(g, x, network, name, np.float16)
    return g.add("Cast", [x], f"{name}.single", to=TensorProto.FLOAT)


def _int8_network(g: GraphBuilder, x: str, network: QuantizedNetwork, name: str) -> str:
    first, second, last = network.convs
    x = g.add("Concat", [x, x], f"{name}.twice", axis=1)
    x = g.add("Mul", [x, g.constant(f"{name}.read.factor", network.input_factor)], f"{name}.read")
    x = _quantized_conv(g, _rounded_to_bytes(g, x), first, f"{name}.conv1")
    x = g.add("Relu", [x], f"{name}.relu1")
    x = _quantized_conv(g, _rounded_to_bytes(g, x), second, f"{name}.conv2")
    x = g.add("Relu", [x], f"{name}.relu2")
    x = _rounded_to_bytes(g, _quantized_conv(g, _rounded_to_bytes(g, x), last, f"{name}.conv3"))
    halves = g.split(x, [network.output_factor.shape[0]] * 2, f"{name}.signs")
    x = g.add("Sub", halves, f"{name}.signed")
    x = g.add("Mul", [x, g.constant(f"{name}.factor", network.output_factor)], f"{name}.stretched")
    return g.add("Add", [x, g.constant(f"{name}.offset", network.output_offset)], f"{name}.outputs")


def _quantized_conv(g: GraphBuilder, x: str, conv: QuantizedConv, output: str) -> str:
    """A convolution of bytes, in the form that ONNX Runtime replaces by an integer convolution (QDQ)."""
    weight = _dequantized(g, f"{output}.weight", conv.weight, conv.weight_scale)
    per_position = conv.bias.ndim == 3
    if per_position:
        bias = g.constant(f"{output}.bias", conv.bias)
    else:
        bias = _dequantized(g, f"{output}.bias", conv.bias, conv.bias_scale)
    return g.biased_conv(x, weight, bias, output, kernel=conv.weight.shape[2], per_position=per_position)


def _rounded_to_bytes(g: GraphBuilder, x: str) -> str:
    """Clamps values to [0, 1] and rounds them to multiples of 1/255 (QuantizeLinear, DequantizeLinear)."""
    scale, zero = g.constant("byte.scale", BYTE_SCALE), g.constant("byte.zero", np.uint8(0))
    quantized = g.add("QuantizeLinear", [x, scale, zero], f"{x}.bytes")
    return g.add("DequantizeLinear", [quantized, scale, zero], f"{x}.rounded")


def _dequantized(g: GraphBuilder, name: str, integers: npt.ArrayLike, scales: npt.ArrayLike) -> str:
    """Integers times the scale of their output channel."""
    inputs = [g.constant(f"{name}.integers", integers), g.constant(f"{name}.scale", scales)]
    return g.add("DequantizeLinear", inputs, name, axis=0)
