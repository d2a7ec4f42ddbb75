"""Builds an ONNX graph node by node.

Shapes: N images; C H W of a level.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from glowserve_export.convolution import FoldedConv
from glowserve_export.size import check_graph_bytes

# ONNX Runtime 1.17 and newer read these.
_OPSET = 18
_IR_VERSION = 9
# float32 values in a cache line of 64 bytes, which is also the widest vector register.
_CACHE_LINE_VALUES = 16


class GraphBuilder:
    """Collects nodes and constants. Methods that add a node return the name of its output tensor."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Adds a node with one output; node and output have the same name."""
        self._nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def split(self, x: str, sizes: Sequence[int], name: str) -> list[str]:
        """Splits x along axis 1."""
        outputs = [f"{name}.{i}" for i in range(len(sizes))]
        lengths = self.constant(f"{name}.sizes", np.asarray(sizes, np.int64))
        self._nodes.append(helper.make_node("Split", [x, lengths], outputs, name=name, axis=1))
        return outputs

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        """Adds a constant; float64 values are stored as float32."""
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def conv(self, x: str, conv: FoldedConv, output: str, dtype: npt.DTypeLike = np.float32) -> str:
        """A convolution with constant weights of type `dtype`."""
        weight = self.constant(f"{output}.weight", conv.weight.astype(dtype))
        bias = self.constant(f"{output}.bias", conv.bias.astype(dtype))
        return self.biased_conv(
            x, weight, bias, output, kernel=conv.weight.shape[2], per_position=conv.bias.ndim == 3
        )

    def biased_conv(
        self, x: str, weight: str, bias: str, output: str, *, kernel: int, per_position: bool
    ) -> str:
        """A convolution that keeps height and width; a bias that depends on the position takes a second node."""
        same_size = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4}
        if not per_position:
            return self.add("Conv", [x, weight, bias], output, **same_size)
        x = self.add("Conv", [x, weight], f"{output}.unbiased", **same_size)
        return self.add("Add", [x, bias], output)

    def minus_sum(self, x: str, size: int, name: str) -> str:
        """Minus the sum over [C, H, W], `size` values in all, [N, 1]."""
        x = self.add("Flatten", [x], f"{name}.flat", axis=1)
        x = self.padded_rows(x, size, name)
        x = self.add(
            "ReduceSum", [x, self.constant(f"{name}.axis", np.array([1]))], f"{name}.sum", keepdims=1
        )
        return self.add("Neg", [x], name)

    def padded_rows(self, x: str, size: int, name: str) -> str:
        """Pads the rows of [N, size] with zeros to whole cache lines.

        ONNX Runtime sums a row in an order that depends on the row's alignment. With equal alignment of all rows, the
        score of an image does not depend on its place in the batch.
        """
        if not (missing := -size % _CACHE_LINE_VALUES):
            return x
        pads = self.constant(f"{name}.pads", np.array([0, 0, 0, missing]))
        return self.add("Pad", [x, pads], f"{name}.padded")

    def model(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The finished model, without the nodes and constants that no output needs.

        The builder is empty afterwards, so that weights are in memory once.
        """
        nodes, needed = self._needed({output.name for output in outputs})
        check_graph_bytes(
            sum(len(self._constants[each].raw_data) for each in needed & self._constants.keys())
        )
        model = helper.make_model(
            helper.make_graph(nodes, name, inputs, outputs),
            producer_name="glowserve",
            opset_imports=[helper.make_opsetid("", _OPSET)],
        )
        model.ir_version = _IR_VERSION
        for constant in list(self._constants):
            tensor = self._constants.pop(constant)
            if constant in needed:
                model.graph.initializer.append(tensor)
        return model

    def _needed(self, outputs: set[str]) -> tuple[list[onnx.NodeProto], set[str]]:
        """The nodes that the outputs need, in their order, and the names of all tensors that these read or write."""
        nodes, needed = [], set(outputs)
        for node in reversed(self._nodes):
            if not needed.isdisjoint(node.output):
                nodes.append(node)
                needed.update(node.input)
        return nodes[::-1], needed


def add_outputs(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Makes float32 tensors inside a model outputs of it."""
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in present
    )


def float_info(name: str, *shape: str | int) -> onnx.ValueInfoProto:
    """Describes a float32 input or output."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def image_info(name: str, *shape: str | int) -> onnx.ValueInfoProto:
    """Describes a uint8 input or output."""
    return helper.make_tensor_value_info(name, TensorProto.UINT8, shape)


def class_info(name: str, *shape: str | int) -> onnx.ValueInfoProto:
    """Describes an int64 input."""
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)
