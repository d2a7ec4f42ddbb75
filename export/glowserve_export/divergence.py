"""Finds the layer at which a graph diverges from the reference, by comparing the output of every layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Float32Array
from glowserve.runtime.ort import onnxruntime
from glowserve.runtime.repository import FORWARD, REVERSE, Bundle
from glowserve_export.builder import add_outputs
from glowserve_export.reference import Layers, Reference

# Smaller relative errors are rounding.
_ROUNDING = 1e-6
# An error that grows by a smaller factor from one layer to the next is not attributed to a layer.
_MIN_GROWTH = 1e2


def diverging_layer_forward(
    reference: Reference, bundle: Bundle, images: UInt8Array, noise: Float32Array
) -> str | None:
    """The layer of forward.onnx at which the relative error grows most; None if it grows little everywhere."""
    layers = reference.forward_layers(images, noise)
    return _diverging_layer(bundle, FORWARD, {"image": images, "noise": noise}, layers)


def diverging_layer_reverse(reference: Reference, bundle: Bundle, latent: Float32Array) -> str | None:
    """The layer of reverse.onnx at which the relative error grows most; None if it grows little everywhere."""
    inputs: dict[str, Any] = {"latent": latent}
    if bundle.classes:
        inputs["class"] = np.full(len(latent), -1)
    return _diverging_layer(bundle, REVERSE, inputs, reference.reverse_layers(latent))


def _diverging_layer(bundle: Bundle, graph: str, inputs: dict[str, Any], layers: Layers) -> str | None:
    expected = {name: output.numpy(force=True) for name, output in layers}
    model = onnx.load_from_string(bundle.read(graph))
    produced = {output for node in model.graph.node for output in node.output}
    for name in expected:
        if name not in produced:
            return f"{name} of {graph}"
    add_outputs(model, expected)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = session.run(list(expected), inputs)
    worst, growth, before = None, _MIN_GROWTH, _ROUNDING
    for (name, reference), output in zip(expected.items(), outputs, strict=True):
        error = float(np.abs(output - reference).max() / (np.abs(reference).max() + 1e-30))
        if not np.isfinite(error):
            # Neither are all later layers, and their errors mean nothing.
            worst = worst or name
            break
        if error > growth * before:
            worst, growth = name, error / before
        before = max(error, before)
    return f"{worst} of {graph}" if worst else None
