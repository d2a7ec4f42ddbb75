"""An ONNX graph in the making, and the pieces that both graphs and their parts are made of.

Shapes: N images; at a level [N, c, h, w].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from glowserve_export.baked import BakedConv, BakedNetwork, Float64Array
from glowserve_export.precision import (
    BYTE_SCALE,
    FP32,
    Precision,
    QuantizedConv,
    QuantizedNetwork,
    check_half,
    quantized,
)

# Any ONNX Runtime since 1.17 reads these.
_OPSET = 18
_IR_VERSION = 9
# float32 values in a line of memory, 64 bytes: the widest that processors load at once.
_LINE = 16


class Graph:
    """A graph in the making: nodes and constants, each tensor with a name."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """A node with one output, called like it; returns the name."""
        self._nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def split(self, x: str, sizes: Sequence[int], name: str) -> list[str]:
        """X in pieces along axis 1."""
        outputs = [f"{name}.{i}" for i in range(len(sizes))]
        lengths = self.constant(f"{name}.sizes", np.asarray(sizes, np.int64))
        self._nodes.append(helper.make_node("Split", [x, lengths], outputs, name=name, axis=1))
        return outputs

    def constant(self, name: str, value: npt.ArrayLike | Float64Array) -> str:
        """A constant, float32 unless it is integer or float16."""
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def conv(self, x: str, conv: BakedConv, output: str, dtype: npt.DTypeLike = np.float32) -> str:
        """A convolution with constant weights that keeps the size."""
        weight = self.constant(f"{output}.weight", conv.weight.astype(dtype))
        bias = self.constant(f"{output}.bias", conv.bias.astype(dtype))
        if conv.bias.ndim == 1:
            return self.add("Conv", [x, weight, bias], output, **_same_size(conv.weight))
        x = self.add("Conv", [x, weight], f"{output}.unbiased", **_same_size(conv.weight))
        return self.add("Add", [x, bias], output)

    def quantized_conv(self, x: str, conv: QuantizedConv, output: str) -> str:
        """A convolution that reads bytes, in a form that ONNX Runtime takes for one of integers."""
        weight = self._dequantized(f"{output}.weight", conv.weight, conv.weight_scale)
        if conv.bias.ndim == 1:
            bias = self._dequantized(f"{output}.bias", conv.bias, conv.bias_scale)
            return self.add("Conv", [x, weight, bias], output, **_same_size(conv.weight))
        x = self.add("Conv", [x, weight], f"{output}.unbiased", **_same_size(conv.weight))
        return self.add("Add", [x, self.constant(f"{output}.bias", conv.bias)], output)

    def as_bytes(self, x: str) -> str:
        """Values of [0, 1], rounded to bytes and back; what lies beyond is drawn in."""
        scale, zero = self.constant("byte.scale", BYTE_SCALE), self.constant("byte.zero", np.uint8(0))
        quantized = self.add("QuantizeLinear", [x, scale, zero], f"{x}.bytes")
        return self.add("DequantizeLinear", [quantized, scale, zero], f"{x}.rounded")

    def _dequantized(self, name: str, values: npt.ArrayLike, scales: npt.ArrayLike) -> str:
        """Integers times the scales of output channels."""
        inputs = [self.constant(f"{name}.integers", values), self.constant(f"{name}.scale", scales)]
        return self.add("DequantizeLinear", inputs, name, axis=0)

    def model(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The whole, with what goes in and what comes out."""
        graph = helper.make_graph(self._nodes, name, inputs, outputs, list(self._constants.values()))
        model = helper.make_model(
            graph, producer_name="glowserve", opset_imports=[helper.make_opsetid("", _OPSET)]
        )
        model.ir_version = _IR_VERSION
        return model


def _same_size(weight: npt.NDArray[Any]) -> dict[str, list[int]]:
    """What makes a convolution with this weight, [out, in, k, k], keep the size."""
    kernel = weight.shape[2]
    return {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4}


def coupling_network(
    g: Graph,
    x: str,
    network: BakedNetwork,
    active: int,
    name: str,
    *,
    affine: bool,
    precision: Precision = FP32,
) -> list[str]:
    """A coupling network's shift of `active` channels and, of an affine coupling, the scale's logit, in float32.

    Raises:
        ExportError: float16 cannot hold it.
    """
    if name in precision.ranges:
        x = _int8_network(g, x, quantized(network, precision.ranges[name]), name)
    elif precision.name == "fp16":
        x = _fp16_network(g, x, network, name)
    else:
        x = _network(g, x, network, name)
    return g.split(x, [active, active], f"{name}.shift_logit") if affine else [x]


def _network(g: Graph, x: str, network: BakedNetwork, name: str, dtype: npt.DTypeLike = np.float32) -> str:
    first, second, last = network
    x = g.conv(x, first, f"{name}.conv1", dtype)
    x = g.add("Relu", [x], f"{name}.relu1")
    x = g.conv(x, second, f"{name}.conv2", dtype)
    x = g.add("Relu", [x], f"{name}.relu2")
    return g.conv(x, last, f"{name}.conv3", dtype)


def _fp16_network(g: Graph, x: str, network: BakedNetwork, name: str) -> str:
    for i, conv in enumerate(network, 1):
        check_half(conv, f"{name}.conv{i}")
    x = g.add("Cast", [x], f"{name}.half", to=TensorProto.FLOAT16)
    x = _network(g, x, network, name, np.float16)
    return g.add("Cast", [x], f"{name}.single", to=TensorProto.FLOAT)


def _int8_network(g: Graph, x: str, network: QuantizedNetwork, name: str) -> str:
    first, second, last = network.convs
    x = g.add("Concat", [x, x], f"{name}.twice", axis=1)
    x = g.add("Mul", [x, g.constant(f"{name}.read.factor", network.read_factor)], f"{name}.read")
    x = g.quantized_conv(g.as_bytes(x), first, f"{name}.conv1")
    x = g.add("Relu", [x], f"{name}.relu1")
    x = g.quantized_conv(g.as_bytes(x), second, f"{name}.conv2")
    x = g.add("Relu", [x], f"{name}.relu2")
    x = g.as_bytes(g.quantized_conv(g.as_bytes(x), last, f"{name}.conv3"))
    halves = g.split(x, [network.factor.shape[0]] * 2, f"{name}.signs")
    x = g.add("Sub", halves, f"{name}.signed")
    x = g.add("Mul", [x, g.constant(f"{name}.factor", network.factor)], f"{name}.stretched")
    return g.add("Add", [x, g.constant(f"{name}.offset", network.offset)], f"{name}.outputs")


def minus_sum(g: Graph, x: str, size: int, name: str) -> str:
    """Minus the sum over [c, h, w], `size` values in all, [N, 1]."""
    x = g.add("Flatten", [x], f"{name}.flat", axis=1)
    x = in_whole_lines(g, x, size, name)
    x = g.add("ReduceSum", [x, g.constant(f"{name}.axis", np.array([1]))], f"{name}.sum", keepdims=1)
    return g.add("Neg", [x], name)


def in_whole_lines(g: Graph, x: str, size: int, name: str) -> str:
    """Rows of [N, size], filled up with zeros to whole lines of memory.

    ONNX Runtime adds up a row in an order that depends on where it begins in such a line. So filled, all rows
    begin alike, and an image's score does not depend on its place in the batch.
    """
    if not (missing := -size % _LINE):
        return x
    pads = g.constant(f"{name}.pads", np.array([0, 0, 0, missing]))
    return g.add("Pad", [x, pads], f"{name}.padded")
