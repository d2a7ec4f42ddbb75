"""From a checkpoint to a bundle that has been proved, under the next version's name."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from glowserve_training.data import DataConfig, HeldOutImages, load_held_out
from google.protobuf import json_format

from glowserve.files import atomic_write, sync_directory
from glowserve.images import UInt8Array
from glowserve.likelihood import bits_per_dim
from glowserve.runtime.canary import draw_canary
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import BundleError
from glowserve.runtime.randomness import DEFAULT_SEED, dequantization_noise
from glowserve.runtime.repository import (
    CHECKSUM,
    FORMAT_VERSION,
    FORWARD,
    MANIFEST,
    MODEL_NAME,
    REVERSE,
    Bundle,
    manifest_checksum,
    open_bundle,
)
from glowserve.v1 import manifest_pb2
from glowserve_export.baked import BakedGlow
from glowserve_export.calibration import calibrated
from glowserve_export.errors import DataChangedError, ExportError, ProofError
from glowserve_export.graphs import forward_graph, reverse_graph
from glowserve_export.operations import operations
from glowserve_export.source import Source
from glowserve_export.verification import prove

_BATCH = 32
_STAGING = ".staging-"
# An exporter locks its folder well within this time.
_YOUNG_SECONDS = 60.0
_TOOLS = ("torch", "onnx", "onnxruntime", "numpy")


def export(
    source: Source,
    model_dir: Path,
    *,
    data: str | None = None,
    precision: str = "fp32",
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Exports a model as the next version of one in a repository.

    Args:
        source: the model.
        model_dir: REPOSITORY/MODEL; made if needed.
        data: where held-out images come from, if not from where they came in training.
        precision: what the coupling networks compute in, "fp32", "fp16" or "int8".
        say: told of each stage as it begins.

    Returns:
        The bundle, in REPOSITORY/MODEL/VERSION.

    Raises:
        ExportError: something misses a bound, or has changed; nothing was written.
        glowserve_training.errors.TrainingError: the images cannot be read.
    """
    if not MODEL_NAME.fullmatch(model_dir.name):
        raise ExportError(
            f"model name {model_dir.name!r}: it must be 1 to 128 letters, digits, dots, dashes and underscores, "
            "and begin with a letter or a digit"
        )
    say("reading held-out images")
    where = _where(source, data)
    images = _held_out(source, where, say)
    model_dir.mkdir(parents=True, exist_ok=True)
    # A model that overflows ends in a sentence, not in warnings before it.
    with _staging(model_dir) as staging, np.errstate(all="ignore"):
        say("writing graphs")
        chosen = calibrated(precision, source.glow, images.validation)
        if precision == "int8":
            say(f"{len(chosen.ranges)} of {len(list(source.glow.named_steps()))} steps of flow are int8")
        bundle = Bundle(staging, _describe(source, where, model_dir.name, precision))
        manifest = bundle.manifest
        for name, graph in (
            (FORWARD, forward_graph(source.glow, chosen)),
            (REVERSE, reverse_graph(source.glow, chosen)),
        ):
            manifest.files.append(_write_graph(graph, staging / name))
        engine = Engine(bundle, RuntimeConfig(device="cpu"))
        say("proving them on held-out images")
        manifest.verification.CopyFrom(prove(source.exact, source.glow, bundle, engine, images.test))
        say("calibrating")
        bits = _held_out_bits_per_dim(engine, source.glow, images.validation)
        manifest.calibration.bits_per_dim.extend(sorted(bits))
        manifest.calibration.data = where.data
        manifest.canary.CopyFrom(_canary(engine, source.glow))
        return _publish(staging, manifest, model_dir)


def _where(source: Source, data: str | None) -> DataConfig:
    """Where held-out images come from."""
    if source.data is not None:
        return replace(source.data, data=data) if data else source.data
    if data is None:
        raise ExportError(
            "it is not known what the model was trained on: name images that it was not trained on with --data"
        )
    return DataConfig(data=data, image_size=source.glow.image_size, channels=source.glow.channels)


def _held_out(source: Source, where: DataConfig, say: Callable[[str], None]) -> HeldOutImages:
    images = load_held_out(where)
    if source.data is None or images.digest == source.held_out_digest:
        return images
    if where == source.data:
        raise DataChangedError(
            f"data {where.data!r} no longer yields the images that were held out in training: files were "
            "added, removed or changed, or are decoded differently here. Give images that the model was not trained "
            "on with --data"
        )
    say(
        f"warning: {where.data!r} does not yield the images that were held out in training. Proof and percentiles are"
    )
    say(
        "         only worth something if the model was trained on none of it; the manifest says where they came from"
    )
    return images


def _describe(source: Source, where: DataConfig, name: str, precision: str) -> manifest_pb2.Manifest:
    """The manifest, but for files, proof, calibration and version."""
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
            filter=where.preparation.filter, background=where.preparation.background
        ),
        flow=source.flow,
        log_det_constant=glow.log_det_constant,
        training=source.training,
        randomness=manifest_pb2.RANDOMNESS_VERSION_PHILOX_BOX_MULLER,
        tools={tool: importlib.metadata.version(tool) for tool in _TOOLS if _installed(tool)},
    )
    manifest.flow.precision = precision
    manifest.created_at.GetCurrentTime()
    return manifest


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # onnxruntime is onnxruntime-gpu elsewhere
        return False
    return True


def _write_graph(graph: onnx.ModelProto, path: Path) -> manifest_pb2.File:
    onnx.checker.check_model(graph, full_check=True)
    data = graph.SerializeToString(deterministic=True)
    with atomic_write(path) as file:
        file.write(data)
    return manifest_pb2.File(
        name=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        nodes=len(graph.graph.node),
        operations=operations(graph),
    )


def _canary(engine: Engine, glow: BakedGlow) -> manifest_pb2.Canary:
    try:
        return draw_canary(engine, glow.dimensions)
    except BundleError as error:
        raise ProofError(f"{error}. Nothing was written") from error


def _held_out_bits_per_dim(engine: Engine, glow: BakedGlow, images: UInt8Array) -> list[float]:
    """Of held-out images, exactly as the service will score them."""
    bits: list[float] = []
    for i in range(0, len(images), _BATCH):
        part = images[i : i + _BATCH]
        forward = engine.forward(part, dequantization_noise(DEFAULT_SEED, part))
        bits += bits_per_dim(forward.log_likelihood, glow.dimensions).tolist()
    lost = len(bits) - int(np.isfinite(bits).sum())
    if lost:
        raise ProofError(
            f"{lost} of {len(bits)} held-out images have no finite likelihood and the bound is 0; the model diverged "
            "on them: go back to an earlier checkpoint, or train with a lower learning rate"
        )
    return bits


@contextmanager
def _staging(model_dir: Path) -> Iterator[Path]:
    """A folder beside the versions, gone at the end unless it was published, and locked until then."""
    _sweep(model_dir)
    path = Path(tempfile.mkdtemp(prefix=_STAGING, dir=model_dir))
    path.chmod(0o755)
    lock = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # this file system has no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
    finally:
        os.close(lock)
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # it is not empty, unless this was a first export, and failed
            model_dir.rmdir()


def _sweep(model_dir: Path) -> None:
    """Removes the folders of exporters that were killed: old ones that nobody has locked. No service reads them."""
    for path in model_dir.glob(f"{_STAGING}*"):
        with suppress(OSError):  # somebody else removed it, or has locked it, or it may not be removed
            if time.time() - path.stat().st_mtime < _YOUNG_SECONDS:
                continue
            lock = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(lock)


def _next_version(model_dir: Path) -> int:
    """One more than every number there is, be it of a bundle or not: a version is never given twice."""
    return max((int(path.name) for path in model_dir.iterdir() if path.name.isdecimal()), default=0) + 1


def _publish(staging: Path, manifest: manifest_pb2.Manifest, model_dir: Path) -> Bundle:
    """Gives the folder the next version's number, at once and on the disk."""
    while True:
        manifest.version = _next_version(model_dir)
        data = json_format.MessageToJson(manifest, preserving_proto_field_name=True).encode() + b"\n"
        for name, content in ((MANIFEST, data), (CHECKSUM, manifest_checksum(data))):
            with atomic_write(staging / name) as file:
                file.write(content)
        sync_directory(staging)
        target = model_dir / str(manifest.version)
        try:
            os.rename(staging, target)  # noqa: PTH104  # Path.rename would not say whether it replaced
        except OSError:
            if not target.is_dir():
                raise
            continue  # somebody else took the number
        sync_directory(model_dir)
        return open_bundle(target)
