"""The size of a graph, known before anything is built.

An ONNX file is a protobuf message, which ends at 2 GiB. Weights in files beside it would lift that limit; no bundle has
them, so that `glowserve.runtime` has one file to check for each graph.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from glowserve_export.errors import ExportError

_LIMIT = 2**31
# Nodes, names, and weights other than those of convolutions.
_REST = 2**24
_SMALLER = "train a model with fewer steps of flow or a smaller width"


def check_size(weights: Mapping[str, Tensor], precision: str) -> None:
    """Checks that a model fits into a graph. Nearly all of its weights are those of coupling networks.

    Args:
        weights: the model's state_dict.
        precision: of the coupling networks. int8 counts as float32: networks that would lose too much stay float32, and
            a float32 graph calibrates the others.

    Raises:
        ExportError: it does not fit.
    """
    values = sum(tensor.numel() for tensor in weights.values() if tensor.ndim == 4)
    if precision == "fp16":
        check_graph_bytes(2 * values)
    else:
        halved = 2 * values + _REST <= _LIMIT
        check_graph_bytes(4 * values, f"export with precision fp16, or {_SMALLER}" if halved else _SMALLER)


def check_graph_bytes(size: int, remedy: str = _SMALLER) -> None:
    """Raises ExportError if weights of that size, in bytes, do not fit into a graph."""
    if size + _REST > _LIMIT:
        raise ExportError(
            f"the weights of a graph of this model take {size / 2**30:.2f} GiB, and an ONNX file holds less than "
            f"{_LIMIT / 2**30:.0f} GiB: {remedy}"
        )
