"""From a checkpoint to a bundle that has been proved, under the next version's name."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from google.protobuf import json_format

from export.baked import BakedGlow
from export.errors import DataChangedError, ExportError, ProofError
from export.exact import ExactModel
from export.frontend import bake
from export.graphs import forward_graph, reverse_graph
from export.proof import prove
from glowserve.files import atomic_write, sync_directory
from glowserve.images import UInt8Array
from glowserve.v1 import manifest_pb2
from service.engine import Engine
from service.randomness import dequantization_noise
from service.repository import (
    FORMAT_VERSION,
    FORWARD,
    MANIFEST,
    MODEL_NAME,
    REVERSE,
    Bundle,
    open_bundle,
)
from service.scoring import DEFAULT_SEED, bits_per_dim
from training.checkpoint import Checkpoint, load_checkpoint
from training.data import HeldOutImages, load_held_out

_BATCH = 32
_TOOLS = ("torch", "onnx", "onnxruntime", "numpy")


def export(
    checkpoint_path: Path,
    model_dir: Path,
    *,
    data: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Exports a checkpoint as the next version of a model.

    Args:
        checkpoint_path: what `glowserve train` left.
        model_dir: REPOSITORY/MODEL; made if needed.
        data: where held-out images come from, if no longer from where they came from in training.
        say: told of each stage as it begins.

    Returns:
        The bundle, in REPOSITORY/MODEL/VERSION.

    Raises:
        ExportError: something cannot be inverted, misses a bound, or has changed; nothing was written.
        training.errors.TrainingError: the checkpoint or the images cannot be read.
    """
    if not MODEL_NAME.fullmatch(model_dir.name):
        raise ExportError(
            f"model name {model_dir.name!r}: it must be 1 to 128 letters, digits, dots, dashes and underscores, "
            "and begin with a letter or a digit"
        )
    say(f"reading {checkpoint_path}")
    checkpoint = load_checkpoint(checkpoint_path)
    glow = bake(checkpoint.model)
    say("reading held-out images")
    images = _held_out(checkpoint, data, say)
    model_dir.mkdir(parents=True, exist_ok=True)
    # A model that overflows ends in a sentence, not in warnings before it.
    with _staging(model_dir) as staging, np.errstate(all="ignore"):
        say("writing graphs")
        manifest = _describe(checkpoint, glow, model_dir.name)
        for name, graph in ((FORWARD, forward_graph(glow)), (REVERSE, reverse_graph(glow))):
            manifest.files.append(_write_graph(graph, staging / name))
        bundle = Bundle(staging, manifest)
        engine = Engine(bundle, device="cpu")
        say("proving them on held-out images")
        manifest.verification.CopyFrom(prove(ExactModel(checkpoint.model), glow, bundle, engine, images.test))
        say("calibrating")
        bits = _held_out_bits_per_dim(engine, glow, images.validation)
        manifest.calibration.bits_per_dim.extend(sorted(bits))
        manifest.calibration.data = data or checkpoint.data.data
        return _publish(staging, manifest, model_dir)


def _held_out(checkpoint: Checkpoint, data: str | None, say: Callable[[str], None]) -> HeldOutImages:
    images = load_held_out(replace(checkpoint.data, data=data) if data else checkpoint.data)
    if images.digest == checkpoint.training.held_out_digest:
        return images
    if data is None:
        raise DataChangedError(
            f"data {checkpoint.data.data!r} no longer yields the images that were held out in training: files were "
            "added, removed or changed, or are decoded differently here. Give images that the model was not trained "
            "on with --data"
        )
    say(
        f"warning: {data!r} does not yield the images that were held out in training. Proof and percentiles are only"
    )
    say(
        "         worth something if the model was trained on none of it; the manifest says where they came from"
    )
    return images


def _describe(checkpoint: Checkpoint, glow: BakedGlow, name: str) -> manifest_pb2.Manifest:
    """The manifest, but for files, proof, calibration and version."""
    config, record = checkpoint.model.config, checkpoint.training
    manifest = manifest_pb2.Manifest(
        format_version=FORMAT_VERSION,
        model=name,
        glowserve_version=importlib.metadata.version("glowserve"),
        image=manifest_pb2.ImageSpec(
            height=config.image_size,
            width=config.image_size,
            channels=config.channels,
            n_bits=config.n_bits,
            latent_size=config.dimensions,
        ),
        preparation=manifest_pb2.Preparation(
            filter=checkpoint.data.preparation.filter, background=checkpoint.data.preparation.background
        ),
        flow=manifest_pb2.Flow(
            levels=config.levels,
            steps_per_level=config.steps_per_level,
            width=config.width,
            coupling=config.coupling,
            parametrization=config.parametrization,
            dequantization=config.dequantization,
            coupling_actnorm=config.coupling_actnorm,
            parameters=sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        ),
        log_det_constant=glow.log_det_constant,
        training=manifest_pb2.Training(
            data=checkpoint.data.data,
            steps=record.steps,
            images_seen=record.images_seen,
            seed=record.seed,
            split_seed=checkpoint.data.split_seed,
            metrics=record.metrics,
        ),
        randomness=manifest_pb2.RANDOMNESS_VERSION_PHILOX_BOX_MULLER,
        tools={tool: importlib.metadata.version(tool) for tool in _TOOLS if _installed(tool)},
    )
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
    return manifest_pb2.File(name=path.name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


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
    """A folder beside the versions, gone at the end unless it was published."""
    path = Path(tempfile.mkdtemp(prefix=".staging-", dir=model_dir))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # it is not empty, unless this was a first export, and failed
            model_dir.rmdir()


def _next_version(model_dir: Path) -> int:
    """One more than every number there is, be it of a bundle or not: a version is never given twice."""
    return max((int(path.name) for path in model_dir.iterdir() if path.name.isdecimal()), default=0) + 1


def _publish(staging: Path, manifest: manifest_pb2.Manifest, model_dir: Path) -> Bundle:
    """Gives the folder the next version's number, at once and on the disk."""
    while True:
        manifest.version = _next_version(model_dir)
        with atomic_write(staging / MANIFEST) as file:
            file.write(json_format.MessageToJson(manifest, preserving_proto_field_name=True).encode() + b"\n")
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
