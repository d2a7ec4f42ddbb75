"""Renews the calibration of a bundle: the next version has the same graphs, and compares with other images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import numpy as np

from glowserve.runtime.canary import check_canary, check_n_bits
from glowserve.runtime.manifest import CALIBRATION, CLASS_CALIBRATION
from glowserve.runtime.repository import EXPLAIN, FORWARD, PLACES, Bundle
from glowserve_export.evaluation import EvaluatedBundle
from glowserve_export.explanation import add_places
from glowserve_export.held_out import images_to_calibrate
from glowserve_export.next_version import next_version
from glowserve_export.publication import publish
from glowserve_export.score_calibration import add_calibration, scored_images

_BATCH = 32


def recalibrate(
    bundle: Bundle,
    data: str,
    *,
    label_column: str | None = None,
    device: str = "auto",
    say: Callable[[str], None],
) -> tuple[Bundle, int]:
    """Writes a bundle's graphs with a new calibration, as the next version of its model.

    Args:
        bundle: the bundle; it stays as it is.
        data: where to take images from that the model was not trained on; see `images_to_calibrate`.
        label_column: the column of labels in the data, for a class-conditional model; None if it has one.
        device: "auto", "cpu" or "cuda".
        say: called with a line of text when a stage begins, and with warnings.

    Returns:
        The new bundle, and how many images of the data are left for tests: nothing was computed from them.

    Raises:
        ExportError: the images are too few, one of them has no finite likelihood, or the folder is no version of a
            model; nothing was written.
        glowserve.runtime.errors.GlowserveError: the bundle is damaged, or the device cannot be used.
        glowserve_training.errors.TrainingError: the images cannot be read.
    """
    with (
        next_version(bundle, replaced=(CALIBRATION, CLASS_CALIBRATION, PLACES)) as copy,
        closing(EvaluatedBundle(bundle, device=device)) as evaluated,
        np.errstate(all="ignore"),
    ):
        check_canary(evaluated.engine, bundle)
        check_n_bits(evaluated.engine, bundle)
        say("reading held-out images")
        images = images_to_calibrate(bundle, evaluated, data, label_column, say)
        operations = next(file.operations for file in copy.manifest.files if file.name == FORWARD)
        scored = scored_images(images, operations)
        say(f"scoring {len(scored.calibration)} images, and {len(scored.fitting)} for a density")
        add_calibration(copy, evaluated.engine, scored, _BATCH, data)
        if bundle.has(EXPLAIN):
            add_places(copy, evaluated.engine, images.validation, _BATCH, say)
        return publish(copy), len(images.test)
