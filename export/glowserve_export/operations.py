"""Checks a graph, and counts its operations, without copying its weights: ONNX would copy them several times."""

from __future__ import annotations

import math

import onnx
from onnx import helper

# Larger constants are weights; smaller ones may be shapes and axes, whose values count.
_WEIGHT_BYTES = 4096


def check(model: onnx.ModelProto) -> None:
    """Raises onnx.checker.ValidationError or onnx.shape_inference.InferenceError if a graph is not valid."""
    onnx.checker.check_model(_without_weights(model), full_check=True)


def operations(model: onnx.ModelProto) -> int:
    """Operations of all convolutions on one image: two for each multiply-add."""
    graph = onnx.shape_inference.infer_shapes(_without_weights(model), strict_mode=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
    return sum(
        2 * math.prod(shapes[node.input[1]]) * math.prod(shapes[node.output[0]][2:])
        for node in graph.node
        if node.op_type == "Conv"
    )


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inputs in place of its weights."""
    graph = model.graph
    weights = [tensor for tensor in graph.initializer if len(tensor.raw_data) > _WEIGHT_BYTES]
    inputs = [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in weights]
    names = {weight.name for weight in weights}
    others = [tensor for tensor in graph.initializer if tensor.name not in names]
    light = helper.make_model(
        helper.make_graph(graph.node, graph.name, [*graph.input, *inputs], graph.output, others),
        opset_imports=model.opset_import,
    )
    light.ir_version = model.ir_version
    return light
