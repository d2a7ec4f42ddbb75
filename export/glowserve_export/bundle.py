"""Exports a model: writes its graphs, verifies them, and publishes them as the next version of a bundle."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
from glowserve_training.data import HeldOutImages

from glowserve.images import UInt8Array
from glowserve.runtime.canary import draw_canary
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import BundleError
from glowserve.runtime.manifest import MODEL_NAME
from glowserve.runtime.repository import EXPLAIN, FORWARD, REVERSE, Bundle
from glowserve.v1 import manifest_pb2
from glowserve_export import explanation, workload
from glowserve_export.calibration import calibrate
from glowserve_export.errors import ExportError, VerificationError
from glowserve_export.folded import FoldedGlow
from glowserve_export.graphs import explain_graph, forward_graph, reverse_graph
from glowserve_export.held_out import held_out_config, load_held_out_images
from glowserve_export.manifest import describe
from glowserve_export.operations import check, operations
from glowserve_export.publication import add_file, publish, staged
from glowserve_export.score_calibration import add_calibration, fitting_and_calibration, scored_images
from glowserve_export.source import Source
from glowserve_export.verification import verify


def export(
    source: Source,
    model_dir: Path,
    *,
    data: str | None = None,
    label_column: str | None = None,
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
        label_column: the column of labels in that data, for a class-conditional model; None if it has one.
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
    config = held_out_config(source, data, label_column, say)
    images = load_held_out_images(source, config, say)
    _check_available(verification_images, len(images.test), config.data)
    # Overflow is an error with a sentence of its own; NumPy's warnings would only come before it.
    with staged(model_dir) as staging, np.errstate(all="ignore"):
        say("writing graphs")
        bundle = Bundle(staging, describe(source, config, model_dir.name, precision))
        _write_graphs(bundle, source.glow, fitting_and_calibration(images).fitting, say)
        with closing(Engine(bundle, RuntimeConfig(device=device))) as engine:
            _measure(source, bundle, engine, images, config.data, verification_images, say)
        return publish(bundle)


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
    manifest.canary.CopyFrom(_canary(engine, glow))
    scored = scored_images(images, operations)
    say(
        f"scoring {len(scored.calibration)} held-out images for percentiles and p-values, and {len(scored.fitting)} "
        "for a density"
    )
    add_calibration(bundle, engine, scored, workload.batch_size(glow), data)
    _compare_with_uniform(float(np.mean(manifest.calibration.bits_per_dim)), glow.n_bits, say)
    explanation.add_places(bundle, engine, images.validation, workload.batch_size(glow), say)


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


def _write_graphs(bundle: Bundle, glow: FoldedGlow, images: UInt8Array, say: Callable[[str], None]) -> None:
    precision = calibrate(bundle.manifest.flow.precision, glow, images)
    if precision.name == "int8":
        say(f"{len(precision.ranges)} of {len(glow.flow_couplings())} coupling networks are int8")
    # One after the other: each takes as much memory as its weights, several times.
    _add_graph(bundle, FORWARD, forward_graph(glow, precision))
    _add_graph(bundle, REVERSE, reverse_graph(glow, precision))
    _add_graph(bundle, EXPLAIN, explain_graph(glow, precision))


def _add_graph(bundle: Bundle, name: str, graph: onnx.ModelProto) -> None:
    check(graph)
    file = add_file(bundle, name, graph.SerializeToString(deterministic=True))
    file.nodes, file.operations = len(graph.graph.node), operations(graph)


def _canary(engine: Engine, glow: FoldedGlow) -> manifest_pb2.Canary:
    try:
        return draw_canary(engine, glow.dimensions)
    except BundleError as error:
        raise VerificationError(f"{error}. Nothing was written") from error
