"""Counts the operations of a graph."""

from __future__ import annotations

import math

import onnx


def operations(model: onnx.ModelProto) -> int:
    """Operations of all convolutions on one image: two for each multiply-add."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
    return sum(
        2 * math.prod(shapes[node.input[1]]) * math.prod(shapes[node.output[0]][2:])
        for node in graph.node
        if node.op_type == "Conv"
    )
