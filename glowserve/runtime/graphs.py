"""Checks the file of a graph before ONNX Runtime opens it.

ONNX Runtime would run a loop without end while it loads a graph, would read tensors from files that the graph names,
and knows hundreds of operators that no test of this project has seen. So a graph may contain what the exporter writes
and nothing else: its operators, no subgraphs or functions, and tensors inside the file.

The messages below are the parts of onnx.proto (github.com/onnx/onnx, onnx/onnx.proto) that this check needs, since the
service does not depend on the package onnx. Every field is `repeated` here: a field that a file gives twice is checked
twice, however ONNX Runtime joins the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from glowserve.runtime.errors import BundleError

MAX_GRAPH_BYTES = 2**31 - 1
"""The size of the largest protobuf message, and so of the largest graph."""

# fmt: off
OPERATORS = frozenset((
    "Add", "Cast", "Clip", "Concat", "Conv", "DepthToSpace", "DequantizeLinear", "Div", "Equal", "Exp", "Flatten",
    "Floor", "Gather", "GatherElements", "GreaterOrEqual", "Log", "Mul", "Neg", "Pad", "QuantizeLinear", "ReduceMax",
    "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Round", "Sigmoid", "Softplus", "SpaceToDepth", "Split",
    "Sqrt", "Sub", "Sum", "Tanh", "Transpose", "Where",
))
# fmt: on
"""The operators that the exporter writes, all of ONNX's own domain."""

_BYTES, _INT32, _MESSAGE = 12, 5, 11  # FieldDescriptorProto.Type
# By message: the number and the type of each field.
_MESSAGES: dict[str, dict[str, tuple[int, str | int]]] = {
    "Model": {"graph": (7, "Graph"), "training_info": (20, _BYTES), "functions": (25, _BYTES)},
    "Graph": {"node": (1, "Node"), "initializer": (5, "Tensor"), "sparse_initializer": (15, _BYTES)},
    "Node": {
        "name": (3, _BYTES),
        "op_type": (4, _BYTES),
        "attribute": (5, "Attribute"),
        "domain": (7, _BYTES),
        "overload": (8, _BYTES),
    },
    "Attribute": {
        "name": (1, _BYTES),
        "t": (5, "Tensor"),
        "g": (6, _BYTES),
        "tensors": (10, "Tensor"),
        "graphs": (11, _BYTES),
        "sparse_tensor": (22, _BYTES),
        "sparse_tensors": (23, _BYTES),
    },
    "Tensor": {"name": (8, _BYTES), "external_data": (13, _BYTES), "data_location": (14, _INT32)},
}
# Never written by the exporter. Those of an attribute are the subgraphs of If, Loop and Scan, and sparse tensors.
_FORBIDDEN = {
    "Model": ("training_info", "functions"),
    "Graph": ("sparse_initializer",),
    "Attribute": ("g", "graphs", "sparse_tensor", "sparse_tensors"),
}


def check_graph(data: bytes, what: str) -> None:
    """Checks that a graph has only operators that the exporter writes, and refers to no other file.

    Args:
        data: the content of the file.
        what: the file's name, for the message.

    Raises:
        BundleError: it has something else, or is not a graph.
    """
    try:
        model = _MODEL.FromString(data)
    except DecodeError:
        raise BundleError(f"{what} is not an ONNX graph; export the model again") from None
    for found in _foreign(model):
        raise BundleError(
            f"{what} has {found}, which `glowserve export` never writes; export the model again"
        )


def _foreign(model: Any) -> Iterator[str]:
    """What the exporter would not have written."""
    yield from _forbidden(model, "Model")
    for graph in model.graph:
        yield from _forbidden(graph, "Graph")
        for tensor in graph.initializer:
            yield from _external(tensor)
        for node in graph.node:
            yield from _foreign_node(node)


def _foreign_node(node: Any) -> Iterator[str]:
    operators = [_text(each) for each in node.op_type]
    if len(operators) != 1 or operators[0] not in OPERATORS:
        yield f"the operator {', '.join(operators)[:100]!r}"
    for domain in (*node.domain, *node.overload):
        if domain:
            yield f"an operator of the domain {_text(domain)[:100]!r}"
    for attribute in node.attribute:
        yield from _forbidden(attribute, "Attribute")
        for tensor in (*attribute.t, *attribute.tensors):
            yield from _external(tensor)


def _forbidden(message: Any, kind: str) -> Iterator[str]:
    for field in _FORBIDDEN[kind]:
        if getattr(message, field):
            yield f"a field {field!r}"


def _external(tensor: Any) -> Iterator[str]:
    if tensor.external_data or any(tensor.data_location):
        yield f"a tensor {_text(b''.join(tensor.name))[:100]!r} whose values lie in another file"


def _text(name: bytes) -> str:
    return name.decode(errors="replace")


def _model_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="graphs.proto", package="glowserve.graphs")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            added: Any = message.field.add(name=field, number=number, label=3)  # LABEL_REPEATED
            if isinstance(kind, str):
                added.type, added.type_name = _MESSAGE, f".glowserve.graphs.{kind}"
            else:
                added.type = kind
    pool: Any = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("glowserve.graphs.Model"))


_MODEL = _model_class()
