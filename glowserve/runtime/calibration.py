"""Reads a bundle's calibration, and makes the scorer of a bundle."""

from __future__ import annotations

from glowserve.runtime.errors import BundleError
from glowserve.runtime.manifest import CALIBRATION
from glowserve.runtime.repository import Bundle
from glowserve.scores.calibration import MOST_BYTES, Calibration, read_calibration
from glowserve.scores.scorer import Scorer


def bundle_calibration(bundle: Bundle) -> Calibration | None:
    """The calibration of a bundle; None if the bundle is older than these, or has none.

    Raises:
        BundleError: it is missing or damaged, although the manifest lists it.
    """
    if all(file.name != CALIBRATION for file in bundle.manifest.files):
        return None
    data = bundle.read(CALIBRATION, most=MOST_BYTES)
    try:
        return read_calibration(data, bundle.manifest.image.channels, bundle.manifest.flow.levels)
    except ValueError as error:
        raise BundleError(
            f"bundle {bundle.path}: {CALIBRATION}: {error}; `glowserve calibrate {bundle.path} --data DATA` writes a "
            "version with a new one"
        ) from None


def open_scorer(bundle: Bundle) -> Scorer:
    """The scorer of a bundle.

    Raises:
        BundleError: see `bundle_calibration`.
    """
    return Scorer(bundle.manifest, bundle_calibration(bundle))
