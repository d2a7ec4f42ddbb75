"""Bundles before they are published, with wrong numbers in their graphs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from glowserve_export.errors import VerificationError
from glowserve_export.folded import FoldedGlow
from glowserve_export.graphs import forward_graph, reverse_graph
from glowserve_export.reference import Reference
from glowserve_export.verification import verify
from onnx import numpy_helper

from glowserve.images import UInt8Array
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.repository import Bundle
from glowserve.v1 import manifest_pb2

Change = Callable[[onnx.ModelProto], None]


def add_to_constant(name: str, amount: float) -> Change:
    """Adds to the middle element of a constant."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        array = numpy_helper.to_array(tensor).copy()
        array.reshape(-1)[array.size // 2] += amount
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return change


def unchanged(_: onnx.ModelProto) -> None:
    """Changes nothing."""


def verify_changed(
    folder: Path,
    reference: Reference,
    glow: FoldedGlow,
    images: UInt8Array,
    *,
    forward: Change = unchanged,
    reverse: Change = unchanged,
) -> manifest_pb2.Verification:
    """Writes the graphs of a flow, changed, and verifies them."""
    manifest = manifest_pb2.Manifest(
        image=manifest_pb2.ImageSpec(
            height=glow.image_size.height,
            width=glow.image_size.width,
            channels=glow.channels,
            n_bits=glow.n_bits,
            latent_size=glow.dimensions,
        ),
        flow=manifest_pb2.Flow(precision="fp32", levels=len(glow.levels)),
    )
    for name, model, change in (
        ("forward.onnx", forward_graph(glow), forward),
        ("reverse.onnx", reverse_graph(glow), reverse),
    ):
        change(model)
        data = model.SerializeToString(deterministic=True)
        (folder / name).write_bytes(data)
        manifest.files.add(name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    bundle = Bundle(folder, manifest)
    engine = Engine(bundle, RuntimeConfig(device="cpu", threads=1))
    with np.errstate(all="ignore"):
        return verify(reference, glow, bundle, engine, images)


def verification_error(
    folder: Path,
    reference: Reference,
    glow: FoldedGlow,
    images: UInt8Array,
    *,
    forward: Change = unchanged,
    reverse: Change = unchanged,
) -> str:
    """The message of the error that `verify_changed` raises."""
    with pytest.raises(VerificationError) as raised:
        verify_changed(folder, reference, glow, images, forward=forward, reverse=reverse)
    return str(raised.value)
