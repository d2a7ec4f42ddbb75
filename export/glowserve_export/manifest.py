"""Describes a bundle in its manifest: before anything is measured, and at the end as files."""

from __future__ import annotations

import hashlib
import importlib.metadata

from glowserve_training.data import DataConfig
from google.protobuf import json_format
from google.protobuf.message import Message

from glowserve.images import Preparation
from glowserve.runtime.manifest import (
    CHECKSUM,
    FLOW,
    FORMAT_2_FIELDS,
    MANIFEST,
    YOUNGER_FIELDS,
    format_3_value,
    manifest_checksum,
)
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
        format_version=1,
        model=name,
        glowserve_version=importlib.metadata.version("glowserve"),
        image=manifest_pb2.ImageSpec(
            height=glow.image_size.height,
            width=glow.image_size.width,
            channels=glow.channels,
            n_bits=glow.n_bits,
            latent_size=glow.dimensions,
        ),
        preparation=_preparation(data.preparation),
        flow=source.flow,
        log_det_constant=glow.log_det_constant,
        training=source.training,
        randomness=manifest_pb2.RANDOMNESS_VERSION_PHILOX_BOX_MULLER_REDRAWN,
        tools={tool: version for tool in _TOOLS if (version := _installed_version(tool))},
    )
    manifest.flow.precision = precision
    if manifest.flow.classes:
        manifest.format_version = 4
    elif format_3_value(manifest):
        manifest.format_version = 3
    elif _needs_format_2(source.flow):
        manifest.format_version = 2
    if manifest.format_version == 1:
        for field in FORMAT_2_FIELDS:
            manifest.flow.ClearField(field)
    manifest.created_at.GetCurrentTime()
    return manifest


def _needs_format_2(flow: manifest_pb2.Flow) -> bool:
    return flow.preprocessing == "logit" or flow.coupling_scale == "tanh" or flow.checkerboards > 0


def _preparation(preparation: Preparation) -> manifest_pb2.Preparation:
    """Without the values that older formats do not name, if they are as they were then."""
    message = manifest_pb2.Preparation(filter=preparation.filter, background=preparation.background)
    if preparation.fit != Preparation.fit:
        message.fit = preparation.fit
    if preparation.bits_used != Preparation.bits_used:
        message.bits_used = preparation.bits_used
    return message


def manifest_files(manifest: manifest_pb2.Manifest) -> dict[str, bytes]:
    """The files that a finished manifest is stored in, by name."""
    files, stored = {}, manifest_pb2.Manifest()
    stored.CopyFrom(manifest)
    if manifest.format_version >= 2:
        younger = {field: getattr(manifest.flow, field) for field in YOUNGER_FIELDS}
        for field in younger:
            stored.flow.ClearField(field)
        data = files[FLOW] = _json(manifest_pb2.Flow(**younger))
        stored.files.add(name=FLOW, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    files[MANIFEST] = _json(stored)
    files[CHECKSUM] = manifest_checksum(files[MANIFEST])
    return files


def _json(message: Message) -> bytes:
    # The number of an enum can be read by services that do not know its name, and say what version they do not know.
    text = json_format.MessageToJson(message, preserving_proto_field_name=True, use_integers_for_enums=True)
    return text.encode() + b"\n"


def _installed_version(package: str) -> str:
    """The version of a package; "" if it is not installed, as onnxruntime where onnxruntime-gpu is."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
