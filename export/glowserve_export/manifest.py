"""Writes the part of a manifest that is known before anything is measured."""

from __future__ import annotations

import importlib.metadata

from glowserve_training.data import DataConfig

from glowserve.runtime.manifest import FORMAT_VERSION
from glowserve.v1 import manifest_pb2
from glowserve_export.source import Source

_TOOLS = ("torch", "onnx", "onnxruntime", "numpy")


def describe(source: Source, data: DataConfig, name: str, precision: str) -> manifest_pb2.Manifest:
    """The manifest without version, files, verification, calibration and canary.

    Args:
        source: the model.
        data: the data of the held-out images, whose preparation the service repeats.
        name: the model's name.
        precision: of the coupling networks.
    """
    glow = source.glow
    manifest = manifest_pb2.Manifest(
        format_version=FORMAT_VERSION,
        model=name,
        glowserve_version=importlib.metadata.version("glowserve"),
        image=manifest_pb2.ImageSpec(
            height=glow.image_size,
            width=glow.image_size,
            channels=glow.channels,
            n_bits=glow.n_bits,
            latent_size=glow.dimensions,
        ),
        preparation=manifest_pb2.Preparation(
            filter=data.preparation.filter, background=data.preparation.background
        ),
        flow=source.flow,
        log_det_constant=glow.log_det_constant,
        training=source.training,
        randomness=manifest_pb2.RANDOMNESS_VERSION_PHILOX_BOX_MULLER_REDRAWN,
        tools={tool: version for tool in _TOOLS if (version := _installed_version(tool))},
    )
    manifest.flow.precision = precision
    manifest.created_at.GetCurrentTime()
    return manifest


def _installed_version(package: str) -> str:
    """The version of a package; "" if it is not installed, as onnxruntime where onnxruntime-gpu is."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
