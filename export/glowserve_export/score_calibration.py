"""Computes what scores compare an image with: the parts of held-out images, and the density of some of them.

Shapes: N images, H W C, D = H * W * C.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from glowserve_training.data import HeldOutImages

from glowserve.images import UInt8Array
from glowserve.likelihood import bits_per_dim
from glowserve.runtime.engine import Engine
from glowserve.runtime.manifest import CALIBRATION
from glowserve.runtime.randomness import DEFAULT_SEED, dequantization_noise
from glowserve.runtime.repository import Bundle
from glowserve.scores.calibration import Calibration, write_calibration
from glowserve.scores.complexity import complexity_bits_per_dim, fingerprint
from glowserve.scores.parts import Parts
from glowserve.v1 import manifest_pb2
from glowserve_export import workload
from glowserve_export.density import fit_mixture
from glowserve_export.errors import ExportError, VerificationError
from glowserve_export.publication import add_file


class ScoredImages(NamedTuple):
    """The images that a calibration is computed from."""

    fitting: UInt8Array
    """[M, H, W, C]: a density is fitted to them."""

    calibration: UInt8Array
    """[N, H, W, C]: nothing is fitted to them."""


def fitting_and_calibration(images: HeldOutImages) -> ScoredImages:
    """The held-out images that anything may be fitted to, and those that nothing may.

    A split of version 1 has no calibration images: half of the validation images take their place.

    Raises:
        ExportError: there are too few.
    """
    fitting, calibration = images.validation, images.calibration
    if not len(calibration):
        half = (len(fitting) + 1) // 2
        fitting, calibration = fitting[half:], fitting[:half]
    if not (len(fitting) and len(calibration)):
        raise ExportError(
            f"data has {len(images.validation)} validation and {len(images.calibration)} calibration images; scores "
            "are calibrated with one of each or more: give more images with --data"
        )
    return ScoredImages(fitting, calibration)


def scored_images(images: HeldOutImages, operations: int) -> ScoredImages:
    """The images to compute a calibration from: all, or 100 and more of each kind if the model is large.

    Args:
        images: the held-out images.
        operations: of the forward graph for one image.

    Raises:
        ExportError: see `fitting_and_calibration`.
    """
    both = fitting_and_calibration(images)
    return ScoredImages(*(part[: workload.percentile_images(operations, len(part))] for part in both))


def calibrate_scores(bundle: Bundle, engine: Engine, images: ScoredImages, batch_size: int) -> Calibration:
    """Scores images with the engine that will serve them, and fits a density.

    Args:
        bundle: the bundle, whose manifest has its canary.
        engine: runs it.
        images: the images.
        batch_size: how many images run at once.

    Raises:
        VerificationError: an image has no finite likelihood.
    """
    canary = np.frombuffer(bundle.manifest.canary.image, np.uint8).reshape(bundle.shape)
    fitting, calibration = (_parts(bundle, engine, part, batch_size) for part in images)
    features = fitting.features(bundle.manifest.image.latent_size)
    return Calibration(
        images=calibration, fitting=fitting, density=fit_mixture(features), codec=fingerprint(canary)
    )


def add_calibration(bundle: Bundle, calibration: Calibration, data: str) -> None:
    """Writes the file of a calibration into a bundle's folder, and lists it in the manifest, with its bits/dim.

    GetModel answers with the manifest, which therefore has no more than one number for each image.

    Args:
        bundle: the bundle, which is not published yet, and has no calibration.
        calibration: its calibration.
        data: the data of the images, as named on the command line.
    """
    add_file(bundle, CALIBRATION, write_calibration(calibration))
    manifest = bundle.manifest
    bits = bits_per_dim(calibration.images.log_likelihood, manifest.image.latent_size)
    manifest.calibration.CopyFrom(manifest_pb2.Calibration(bits_per_dim=np.sort(bits), data=data))


def _parts(bundle: Bundle, engine: Engine, images: UInt8Array, batch_size: int) -> Parts:
    """The parts of images, [N, H, W, C], computed as the service computes them."""
    rows = [
        engine.forward(images[batch], dequantization_noise(DEFAULT_SEED, images[batch]))
        for batch in workload.batches(len(images), batch_size, "scoring")
    ]
    parts = Parts(
        log_likelihood=np.concatenate([row.log_likelihood for row in rows]).astype(np.float64),
        log_prior=np.concatenate([row.log_prior for row in rows]).astype(np.float64),
        log_det=np.concatenate([row.log_det for row in rows]).astype(np.float64),
        complexity_bits_per_dim=complexity_bits_per_dim(images, bundle.manifest.image.n_bits),
    )
    finite = np.isfinite(np.column_stack([parts.log_likelihood, parts.log_prior, parts.log_det])).all(axis=1)
    if not_finite := int((~finite).sum()):
        raise VerificationError(
            f"{not_finite} of {len(parts)} held-out images have no finite likelihood and the bound is 0; the model "
            "diverged on them: export an earlier checkpoint, or train with a lower learning rate"
        )
    return parts
