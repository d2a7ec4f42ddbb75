"""Computes what scores compare an image with: the parts of held-out images, and the density of some of them.

Shapes: N images, H W C, D = H * W * C.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from glowserve_training.data import HeldOutImages

from glowserve.images import UInt8Array
from glowserve.likelihood import bits_per_dim
from glowserve.runtime.classes import given_classes
from glowserve.runtime.engine import Engine, Int64Array
from glowserve.runtime.manifest import CALIBRATION, CLASS_CALIBRATION
from glowserve.runtime.randomness import DEFAULT_SEED, dequantization_noise
from glowserve.runtime.repository import Bundle
from glowserve.scores.calibration import Calibration, write_calibration
from glowserve.scores.complexity import fingerprint
from glowserve.scores.parts import Parts, concatenated
from glowserve.scores.scorer import Scorer
from glowserve.v1 import manifest_pb2
from glowserve_export import workload
from glowserve_export.density import fit_density
from glowserve_export.errors import ExportError, VerificationError
from glowserve_export.publication import add_file


class ScoredImages(NamedTuple):
    """The images that a calibration is computed from."""

    fitting: UInt8Array
    """[M, H, W, C]: a density is fitted to them."""

    calibration: UInt8Array
    """[N, H, W, C]: nothing is fitted to them."""

    percentiles_of_both: bool = False
    """Whether percentiles compare with both, as they did before there were calibration images."""

    fitting_labels: Int64Array | None = None
    """The classes of the fitting images, [M], by number; None if they are not known."""

    calibration_labels: Int64Array | None = None
    """The classes of the calibration images, [N]."""


def fitting_and_calibration(images: HeldOutImages) -> ScoredImages:
    """The held-out images that anything may be fitted to, and those that nothing may.

    A split of version 1 has no calibration images: half of the validation images take their place, but for percentiles.

    Raises:
        ExportError: there are too few.
    """
    fitting, calibration = images.validation, images.calibration
    labels = images.validation_labels, images.calibration_labels
    if is_old := not len(calibration):
        half = (len(fitting) + 1) // 2
        fitting, calibration = fitting[half:], fitting[:half]
        labels = None, None
    if not (len(fitting) and len(calibration)):
        raise ExportError(
            f"data has {len(images.validation)} validation and {len(images.calibration)} calibration images; scores "
            "are calibrated with one of each or more: give more images with --data"
        )
    return ScoredImages(fitting, calibration, is_old, *labels)


def scored_images(images: HeldOutImages, operations: int) -> ScoredImages:
    """The images to compute a calibration from: all, or 100 and more of each kind if the model is large.

    Args:
        images: the held-out images.
        operations: of the forward graph for one image.

    Raises:
        ExportError: see `fitting_and_calibration`.
    """
    both = fitting_and_calibration(images)
    m, n = (workload.percentile_images(operations, len(part)) for part in (both.fitting, both.calibration))
    return both._replace(
        fitting=both.fitting[:m],
        calibration=both.calibration[:n],
        fitting_labels=None if both.fitting_labels is None else both.fitting_labels[:m],
        calibration_labels=None if both.calibration_labels is None else both.calibration_labels[:n],
    )


def calibrate_scores(
    bundle: Bundle, engine: Engine, images: ScoredImages, batch_size: int, *, of_classes: bool = False
) -> Calibration:
    """Scores images with the engine that will serve them, and fits a density.

    Args:
        bundle: the bundle, whose manifest has its canary.
        engine: runs it.
        images: the images.
        batch_size: how many images run at once.
        of_classes: whether each image is scored given its class.

    Raises:
        VerificationError: an image has no finite likelihood.
    """
    labels = (images.fitting_labels, images.calibration_labels) if of_classes else (None, None)
    canary = np.frombuffer(bundle.manifest.canary.image, np.uint8).reshape(bundle.shape)
    fitting, calibration = (
        _parts(bundle, engine, part, own, batch_size)
        for part, own in zip((images.fitting, images.calibration), labels, strict=True)
    )
    density = fit_density(fitting, bundle.manifest.image.latent_size)
    return Calibration(
        images=calibration,
        complexity=Scorer(bundle.manifest).complexity(images.calibration),
        fitting=fitting,
        density=density,
        codec=fingerprint(canary),
    )


def add_calibration(bundle: Bundle, engine: Engine, images: ScoredImages, batch_size: int, data: str) -> None:
    """Writes the file of a calibration into a bundle's folder, and lists it in the manifest, with its bits/dim.

    GetModel answers with the manifest, which therefore has no more than one number for each image.

    Args:
        bundle: the bundle, which is not published yet, and has no calibration. Its manifest has its canary.
        engine: runs it.
        images: the images.
        batch_size: how many images run at once.
        data: the data of the images, as named on the command line.

    Raises:
        ExportError: the images have classes that are not the model's.
        VerificationError: an image has no finite likelihood.
    """
    of_classes = _have_classes(images, bundle)
    calibration = calibrate_scores(bundle, engine, images, batch_size)
    add_file(bundle, CALIBRATION, write_calibration(calibration))
    if of_classes:
        given = calibrate_scores(bundle, engine, images, batch_size, of_classes=True)
        add_file(bundle, CLASS_CALIBRATION, write_calibration(given))
    known = [calibration.images, *([calibration.fitting] if images.percentiles_of_both else [])]
    nats = np.concatenate([parts.log_likelihood for parts in known])
    bits = bits_per_dim(nats, bundle.manifest.image.latent_size)
    bundle.manifest.calibration.CopyFrom(manifest_pb2.Calibration(bits_per_dim=np.sort(bits), data=data))


def _have_classes(images: ScoredImages, bundle: Bundle) -> bool:
    """Whether each image has a class. The numbers may come from the file of held-out images of another model's run."""
    if not bundle.classes or images.fitting_labels is None or images.calibration_labels is None:
        return False
    found, most = np.concatenate([images.fitting_labels, images.calibration_labels]), len(bundle.classes) - 1
    if found.min() < 0 or found.max() > most:
        raise ExportError(
            f"the held-out images have classes {found.min()} to {found.max()}, and the model has classes 0 to {most}: "
            "give the held_out.npz of its own run, or other data, with --data"
        )
    return True


def _parts(
    bundle: Bundle, engine: Engine, images: UInt8Array, labels: Int64Array | None, batch_size: int
) -> Parts:
    """The parts of images, [N, H, W, C], given their classes if there are any, as the service computes them."""
    scorer = Scorer(bundle.manifest)

    def score(rows: slice) -> Parts:
        forward = engine.forward(images[rows], dequantization_noise(DEFAULT_SEED, images[rows]))
        if labels is not None:
            forward = given_classes(forward, labels[rows], bundle)
        return scorer.parts(forward, images[rows])

    parts = concatenated([score(rows) for rows in workload.batches(len(images), batch_size, "scoring")])
    if not_finite := int((~parts.finite).sum()):
        raise VerificationError(
            f"{not_finite} of {len(parts)} held-out images have no finite likelihood and the bound is 0; the model "
            "diverged on them: export an earlier checkpoint, or train with a lower learning rate"
        )
    return parts
