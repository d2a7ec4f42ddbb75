"""Exports a model: writes its graphs, verifies them, and publishes them as the next version of a bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import onnx
from glowserve_training.data import HeldOutImages

from glowserve.files import publish_directory, staging_directory
from glowserve.images import UInt8Array
from glowserve.likelihood import bits_per_dim
from glowserve.runtime.canary import draw_canary
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import BundleError
from glowserve.runtime.explanation import write_places
from glowserve.runtime.manifest import MODEL_NAME
from glowserve.runtime.randomness import DEFAULT_SEED, dequantization_noise
from glowserve.runtime.repository import EXPLAIN, FORWARD, PLACES, REVERSE, Bundle, open_bundle
from glowserve.v1 import manifest_pb2
from glowserve_export import explanation, workload
from glowserve_export.calibration import calibrate
from glowserve_export.convolution import Float64Array
from glowserve_export.errors import ExportError, VerificationError
from glowserve_export.folded import FoldedGlow
from glowserve_export.graphs import explain_graph, forward_graph, reverse_graph
from glowserve_export.held_out import held_out_config, load_held_out_images
from glowserve_export.manifest import describe, manifest_files
from glowserve_export.operations import check, operations
from glowserve_export.source import Source
from glowserve_export.verification import verify

# One image has no spread.
_FEWEST_FOR_PLACES = 2


def export(
    source: Source,
    model_dir: Path,
    *,
    data: str | None = None,
    precision: str = "fp32",
    verification_images: int | None = None,
    device: str = "auto",
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Exports a model as the next version of a bundle.

    Args:
        source: the model.
        model_dir: REPOSITORY/MODEL; made if needed.
        data: the data to take held-out images from; None for the training data.
        precision: of the coupling networks: "fp32", "fp16" or "int8".
        verification_images: the number of held-out images to verify on; None for 128, or fewer if the model is large.
        device: "auto", "cpu" or "cuda": runs the graphs that are verified.
        say: called with a line of text when a stage begins, and with warnings.

    Returns:
        The bundle, in REPOSITORY/MODEL/VERSION.

    Raises:
        ExportError: a value misses its bound, the held-out images have changed or are too few, or the model is too
            large; nothing was written.
        glowserve.runtime.errors.GlowserveError: the device cannot be used, or not in that precision; nothing was
            written.
        glowserve_training.errors.TrainingError: the images cannot be read.
    """
    _check_name(model_dir.name)
    say("reading held-out images")
    config = held_out_config(source, data)
    images = load_held_out_images(source, config, say)
    _check_available(verification_images, len(images.test), config.data)
    # Overflow is an error with a sentence of its own; NumPy's warnings would only come before it.
    with _staged(model_dir) as staging, np.errstate(all="ignore"):
        say("writing graphs")
        bundle = Bundle(staging, describe(source, config, model_dir.name, precision))
        _write_graphs(bundle, source.glow, images.validation, say)
        with closing(Engine(bundle, RuntimeConfig(device=device))) as engine:
            _measure(source, bundle, engine, images, config.data, verification_images, say)
        return _publish(bundle, model_dir)


def _measure(
    source: Source,
    bundle: Bundle,
    engine: Engine,
    images: HeldOutImages,
    data: str,
    verification_images: int | None,
    say: Callable[[str], None],
) -> None:
    """Fills in what the manifest states about the graphs: verification, percentiles and canary."""
    manifest, glow = bundle.manifest, source.glow
    operations = manifest.files[0].operations
    tested = images.test[: verification_images or workload.verification_images(operations)]
    say(f"verifying the graphs on {len(tested)} held-out images")
    manifest.verification.CopyFrom(verify(source.reference, glow, bundle, engine, tested))
    known = images.for_percentiles
    scored = known[: workload.percentile_images(operations, len(known))]
    say(f"scoring {len(scored)} of {len(known)} held-out images for percentiles")
    bits = _held_out_bits_per_dim(engine, glow, scored)
    _compare_with_uniform(float(bits.mean()), glow.n_bits, say)
    manifest.calibration.bits_per_dim.extend(np.sort(bits).tolist())
    manifest.calibration.data = data
    manifest.canary.CopyFrom(_canary(engine, glow))
    _measure_places(bundle, engine, glow, images.validation, say)


def _measure_places(
    bundle: Bundle, engine: Engine, glow: FoldedGlow, images: UInt8Array, say: Callable[[str], None]
) -> None:
    """Writes what explanations are compared with; nothing if there is no image that another could differ from."""
    if len(images) < _FEWEST_FOR_PLACES:
        say(f"warning: explanations need {_FEWEST_FOR_PLACES} validation images, and there are {len(images)}")
        return
    some = images[: workload.percentile_images(bundle.manifest.files[0].operations, len(images))]
    say(f"measuring the log-likelihood by place on {len(some)} of {len(images)} validation images")
    places = explanation.measure(engine, some, workload.batch_size(glow))
    bundle.manifest.files.append(_write(write_places(places), bundle.path / PLACES))


def _check_available(wanted: int | None, available: int, data: str) -> None:
    if wanted is not None and not 1 <= wanted <= available:
        raise ExportError(
            f"verification images is {wanted}, and data {data!r} has {available} held-out images to verify on; give 1 "
            f"to {available}, or leave it out"
        )


def _compare_with_uniform(bits: float, n_bits: int, say: Callable[[str], None]) -> None:
    """Warns of a model to which held-out images are no likelier than noise: what --config tells may be wrong."""
    if bits >= n_bits:
        say(
            f"warning: held-out images need {bits:.3f} bits/dim, and a model that knows nothing needs {n_bits}: "
            "its training was short, --data is unlike the training data, or --config tells an image size, n_bits or "
            "scale_map that is not the model's"
        )


def _check_name(name: str) -> None:
    if not MODEL_NAME.fullmatch(name):
        raise ExportError(
            f"model name is {name!r}; it must be 1 to 128 letters, digits, dots, dashes and underscores, and begin "
            "with a letter or a digit"
        )


@contextmanager
def _staged(model_dir: Path) -> Iterator[Path]:
    """A staging folder in `model_dir`, which is made for it, and removed if it stays empty."""
    is_new = not model_dir.exists()
    model_dir.mkdir(parents=True, exist_ok=True)
    try:
        with staging_directory(model_dir) as staging:
            yield staging
    finally:
        if is_new:
            with suppress(OSError):  # it is not empty
                model_dir.rmdir()


def _write_graphs(bundle: Bundle, glow: FoldedGlow, images: UInt8Array, say: Callable[[str], None]) -> None:
    precision = calibrate(bundle.manifest.flow.precision, glow, images)
    if precision.name == "int8":
        say(f"{len(precision.ranges)} of {len(glow.flow_couplings())} coupling networks are int8")
    # One after the other: each takes as much memory as its weights, several times.
    bundle.manifest.files.append(_write_graph(forward_graph(glow, precision), bundle.path / FORWARD))
    bundle.manifest.files.append(_write_graph(reverse_graph(glow, precision), bundle.path / REVERSE))
    bundle.manifest.files.append(_write_graph(explain_graph(glow, precision), bundle.path / EXPLAIN))


def _write_graph(graph: onnx.ModelProto, path: Path) -> manifest_pb2.File:
    check(graph)
    file = _write(graph.SerializeToString(deterministic=True), path)
    file.nodes, file.operations = len(graph.graph.node), operations(graph)
    return file


def _write(data: bytes, path: Path) -> manifest_pb2.File:
    path.write_bytes(data)
    return manifest_pb2.File(name=path.name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def _held_out_bits_per_dim(engine: Engine, glow: FoldedGlow, images: UInt8Array) -> Float64Array:
    """Bits per dimension of held-out images, [N], computed as the service computes them."""
    nats = []
    for i in workload.batches(len(images), workload.batch_size(glow), "scoring"):
        batch = images[i]
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
        for name, data in manifest_files(manifest).items():
            (bundle.path / name).write_bytes(data)
        open_bundle(bundle.path)  # nothing is published that could not be opened
        target = model_dir / str(manifest.version)
        with suppress(FileExistsError):  # another export took the number
            publish_directory(bundle.path, target)
            return open_bundle(target)


def _next_version(model_dir: Path) -> int:
    """One more than the highest number among the names in the folder: no version is used twice."""
    return max((int(path.name) for path in model_dir.iterdir() if path.name.isdecimal()), default=0) + 1
