"""Exports a model: writes its graphs, verifies them, and publishes them as the next version of a bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import onnx
from google.protobuf import json_format

from glowserve.files import publish_directory, staging_directory
from glowserve.images import UInt8Array
from glowserve.likelihood import bits_per_dim
from glowserve.runtime.canary import draw_canary
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import BundleError
from glowserve.runtime.manifest import CHECKSUM, MANIFEST, MODEL_NAME, manifest_checksum
from glowserve.runtime.randomness import DEFAULT_SEED, dequantization_noise
from glowserve.runtime.repository import FORWARD, REVERSE, Bundle, open_bundle
from glowserve.v1 import manifest_pb2
from glowserve_export.calibration import calibrate
from glowserve_export.errors import ExportError, VerificationError
from glowserve_export.folded import Float64Array, FoldedGlow
from glowserve_export.graphs import forward_graph, reverse_graph
from glowserve_export.held_out import held_out_config, load_held_out_images
from glowserve_export.manifest import describe
from glowserve_export.operations import operations
from glowserve_export.source import Source
from glowserve_export.verification import verify

_BATCH = 32


def export(
    source: Source,
    model_dir: Path,
    *,
    data: str | None = None,
    precision: str = "fp32",
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Exports a model as the next version of a bundle.

    Args:
        source: the model.
        model_dir: REPOSITORY/MODEL; made if needed.
        data: the data to take held-out images from; None for the training data.
        precision: of the coupling networks: "fp32", "fp16" or "int8".
        say: called with a line of text when a stage begins, and with warnings.

    Returns:
        The bundle, in REPOSITORY/MODEL/VERSION.

    Raises:
        ExportError: a value misses its bound, or the held-out images have changed; nothing was written.
        glowserve_training.errors.TrainingError: the images cannot be read.
    """
    _check_name(model_dir.name)
    say("reading held-out images")
    config = held_out_config(source, data)
    images = load_held_out_images(source, config, say)
    # Overflow is an error with a sentence of its own; NumPy's warnings would only come before it.
    with _staged(model_dir) as staging, np.errstate(all="ignore"):
        say("writing graphs")
        bundle = Bundle(staging, describe(source, config, model_dir.name, precision))
        _write_graphs(bundle, source.glow, images.validation, say)
        engine = Engine(bundle, RuntimeConfig(device="cpu"))
        say("verifying the graphs on held-out images")
        measured = verify(source.reference, source.glow, bundle, engine, images.test)
        bundle.manifest.verification.CopyFrom(measured)
        say("scoring held-out images for percentiles")
        bits = _held_out_bits_per_dim(engine, source.glow, images.validation)
        bundle.manifest.calibration.bits_per_dim.extend(np.sort(bits).tolist())
        bundle.manifest.calibration.data = config.data
        bundle.manifest.canary.CopyFrom(_canary(engine, source.glow))
        return _publish(bundle, model_dir)


def _check_name(name: str) -> None:
    if not MODEL_NAME.fullmatch(name):
        raise ExportError(
            f"model name is {name!r}; it must be 1 to 128 letters, digits, dots, dashes and underscores, and begin "
            "with a letter or a digit"
        )


@contextmanager
def _staged(model_dir: Path) -> Iterator[Path]:
    """A staging folder in `model_dir`, which is made for it, and removed if it stays empty."""
    model_dir.mkdir(parents=True, exist_ok=True)
    try:
        with staging_directory(model_dir) as staging:
            yield staging
    finally:
        with suppress(OSError):  # it is not empty
            model_dir.rmdir()


def _write_graphs(bundle: Bundle, glow: FoldedGlow, images: UInt8Array, say: Callable[[str], None]) -> None:
    precision = calibrate(bundle.manifest.flow.precision, glow, images)
    if precision.name == "int8":
        say(f"{len(precision.ranges)} of {len(list(glow.named_steps()))} steps of flow are int8")
    for name, graph in (
        (FORWARD, forward_graph(glow, precision)),
        (REVERSE, reverse_graph(glow, precision)),
    ):
        bundle.manifest.files.append(_write_graph(graph, bundle.path / name))


def _write_graph(graph: onnx.ModelProto, path: Path) -> manifest_pb2.File:
    onnx.checker.check_model(graph, full_check=True)
    data = graph.SerializeToString(deterministic=True)
    path.write_bytes(data)
    return manifest_pb2.File(
        name=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        nodes=len(graph.graph.node),
        operations=operations(graph),
    )


def _held_out_bits_per_dim(engine: Engine, glow: FoldedGlow, images: UInt8Array) -> Float64Array:
    """Bits per dimension of held-out images, [N], computed as the service computes them."""
    nats = []
    for i in range(0, len(images), _BATCH):
        batch = images[i : i + _BATCH]
        nats.append(engine.forward(batch, dequantization_noise(DEFAULT_SEED, batch)).log_likelihood)
    bits = bits_per_dim(np.concatenate(nats).astype(np.float64), glow.dimensions)
    if not_finite := int((~np.isfinite(bits)).sum()):
        raise VerificationError(
            f"{not_finite} of {len(bits)} held-out images have no finite likelihood and the bound is 0; the model "
            "diverged on them: export an earlier checkpoint, or train with a lower learning rate"
        )
    return bits


def _canary(engine: Engine, glow: FoldedGlow) -> manifest_pb2.Canary:
    try:
        return draw_canary(engine, glow.dimensions)
    except BundleError as error:
        raise VerificationError(f"{error}. Nothing was written") from error


def _publish(bundle: Bundle, model_dir: Path) -> Bundle:
    """Writes the manifest and renames the folder to the next version."""
    manifest = bundle.manifest
    while True:
        manifest.version = _next_version(model_dir)
        data = json_format.MessageToJson(manifest, preserving_proto_field_name=True).encode() + b"\n"
        (bundle.path / MANIFEST).write_bytes(data)
        (bundle.path / CHECKSUM).write_bytes(manifest_checksum(data))
        open_bundle(bundle.path)  # nothing is published that could not be opened
        target = model_dir / str(manifest.version)
        with suppress(FileExistsError):  # another export took the number
            publish_directory(bundle.path, target)
            return open_bundle(target)


def _next_version(model_dir: Path) -> int:
    """One more than the highest number among the names in the folder: no version is used twice."""
    return max((int(path.name) for path in model_dir.iterdir() if path.name.isdecimal()), default=0) + 1
