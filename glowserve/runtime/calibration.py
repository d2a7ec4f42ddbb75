"""Reads a bundle's calibration, and makes the scorer of a bundle."""

from __future__ import annotations

from glowserve.runtime.errors import BundleError
from glowserve.runtime.manifest import CALIBRATION, CLASS_CALIBRATION
from glowserve.runtime.repository import Bundle
from glowserve.scores.calibration import MOST_BYTES, Calibration, read_calibration
from glowserve.scores.scorer import Scorer


def bundle_calibration(bundle: Bundle, name: str = CALIBRATION) -> Calibration | None:
    """The calibration of a bundle; None if the bundle is older than these, or has none.

    Args:
        bundle: the bundle.
        name: of its file: CALIBRATION, or CLASS_CALIBRATION of images given their classes.

    Raises:
        BundleError: it is missing or damaged, although the manifest lists it.
    """
    if not bundle.has(name):
        return None
    data = bundle.read(name, most=MOST_BYTES)
    try:
        return read_calibration(data, bundle.manifest.image.channels, bundle.manifest.flow.levels)
    except ValueError as error:
        raise BundleError(
            f"bundle {bundle.path}: {name}: {error}; `glowserve calibrate {bundle.path} --data DATA` writes a "
            "version with a new one"
        ) from None


def open_scorer(bundle: Bundle) -> Scorer:
    """The scorer of a bundle.

    Raises:
        BundleError: see `bundle_calibration`.
    """
    return Scorer(bundle.manifest, bundle_calibration(bundle))


def open_class_scorer(bundle: Bundle) -> Scorer | None:
    """The scorer of images whose classes are given; None if the bundle has no calibration of that kind.

    Raises:
        BundleError: see `bundle_calibration`.
    """
    calibration = bundle_calibration(bundle, CLASS_CALIBRATION) if bundle.classes else None
    return None if calibration is None else Scorer.of_calibration(bundle.manifest, calibration)
