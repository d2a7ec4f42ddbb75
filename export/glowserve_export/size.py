"""The size of the graphs.

An ONNX file is a protobuf message, which ends at 2 GiB. Weights in files beside it would lift that limit; no bundle has
them, so that `glowserve.runtime` has one file to check for each graph.

Shapes: C channels of a level after its squeeze.
"""

from __future__ import annotations

from glowserve.v1 import manifest_pb2
from glowserve_export.errors import ExportError

_LIMIT = 2**31
# Names, nodes and whatever else is no weight of a convolution.
_REST = 2**24
# int8 leaves networks that lose too much in float32, and is calibrated with a float32 graph.
_NETWORK_BYTES = {"fp32": 4, "fp16": 2, "int8": 4}
_SMALLER = "train a model with fewer steps of flow or a smaller width"


def check_size(flow: manifest_pb2.Flow, channels: int, precision: str) -> None:
    """Checks that a flow fits into a graph, from its architecture alone: nothing has to be built.

    Args:
        flow: the architecture.
        channels: of an image.
        precision: of the coupling networks.

    Raises:
        ExportError: it does not fit.
    """
    size = graph_bytes(flow, channels, precision)
    halved = precision != "fp16" and graph_bytes(flow, channels, "fp16") + _REST <= _LIMIT
    check_graph_bytes(size, f"export with precision fp16, or {_SMALLER}" if halved else _SMALLER)


def check_graph_bytes(size: int, remedy: str = _SMALLER) -> None:
    """Raises ExportError if weights of that size, in bytes, do not fit into a graph."""
    if size + _REST > _LIMIT:
        raise ExportError(
            f"the weights of a graph of this model take {size / 2**30:.2f} GiB, and an ONNX file holds less than "
            f"{_LIMIT / 2**30:.0f} GiB: {remedy}"
        )


def graph_bytes(flow: manifest_pb2.Flow, channels: int, precision: str) -> int:
    """The bytes of the weights in one graph."""
    networks = others = 0
    for level in range(flow.levels):
        c = channels * 2 ** (level + 2)
        outputs = c if flow.coupling == "affine" else c // 2
        networks += flow.steps_per_level * _network_values(c // 2, outputs, flow.width)
        others += flow.steps_per_level * c * c
        if level < flow.levels - 1:
            others += 9 * (c // 2) * c
    return networks * _NETWORK_BYTES.get(precision, 4) + others * 4


def _network_values(inputs: int, outputs: int, width: int) -> int:
    """Weights of a coupling network: 3x3, 1x1 and 3x3 convolutions."""
    return width * (9 * inputs + width + 9 * outputs)
