"""Which layer of a graph departs from the exact flow: every step's output beside that of the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Float32Array
from glowserve.runtime.repository import FORWARD, REVERSE, Bundle
from glowserve_export.reference import Exact, Layers

# Relative errors below this are rounding.
_ROUNDING = 1e-6


def diverging_layer_forward(
    exact: Exact, bundle: Bundle, images: UInt8Array, noise: Float32Array
) -> str | None:
    """The layer of forward.onnx at which the error against the exact flow grows most; None: at none."""
    layers = exact.forward_layers(images, noise)
    return _diverging(bundle, FORWARD, {"image": images, "noise": noise}, layers)


def diverging_layer_reverse(exact: Exact, bundle: Bundle, latent: Float32Array) -> str | None:
    """The layer of reverse.onnx at which the error against the exact flow grows most; None: at none."""
    return _diverging(bundle, REVERSE, {"latent": latent}, exact.reverse_layers(latent))


def _diverging(bundle: Bundle, graph: str, inputs: dict[str, Any], layers: Layers) -> str | None:
    expected = list(layers)
    model = onnx.load_from_string(bundle.read(graph))
    produced = {output for node in model.graph.node for output in node.output}
    for name, _ in expected:
        if name not in produced:
            return f"{name} of {graph}"
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name, _ in expected
        if name not in present
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [name for name, _ in expected]
    worst, growth, before = None, 1e2, _ROUNDING
    for name, array, (_, exact) in zip(names, session.run(names, inputs), expected, strict=True):
        error = float(np.abs(array - exact.numpy()).max() / (np.abs(exact.numpy()).max() + 1e-30))
        if not np.isfinite(error):  # and so is all that follows: it says nothing of the layers there
            worst = worst or name
            break
        if error > growth * before:
            worst, growth = name, error / before
        before = max(error, before)
    return f"{worst} of {graph}" if worst else None
