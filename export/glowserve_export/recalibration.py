"""Renews the calibration of a bundle: the next version has the same graphs, and compares with other images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import numpy as np
from glowserve_training.data import HeldOutImages, load_held_out

from glowserve.runtime.canary import check_canary, check_n_bits
from glowserve.runtime.manifest import CALIBRATION, FLOW
from glowserve.runtime.repository import FORWARD, Bundle
from glowserve_export.errors import ExportError
from glowserve_export.evaluation import EvaluatedBundle, training_data
from glowserve_export.publication import publish, staged
from glowserve_export.score_calibration import add_calibration, calibrate_scores, scored_images

_BATCH = 32


def recalibrate(bundle: Bundle, data: str, *, device: str = "auto", say: Callable[[str], None]) -> Bundle:
    """Writes a bundle's graphs with a new calibration, as the next version of its model.

    Args:
        bundle: the bundle; it stays as it is.
        data: where to take images from that the model was not trained on.
        device: "auto", "cpu" or "cuda".
        say: called with a line of text when a stage begins, and with warnings.

    Returns:
        The new bundle.

    Raises:
        ExportError: the images are too few, or one of them has no finite likelihood; nothing was written.
        glowserve.runtime.errors.GlowserveError: the bundle is damaged, or the device cannot be used.
        glowserve_training.errors.TrainingError: the images cannot be read.
    """
    model_dir = bundle.path.absolute().parent
    with (
        staged(model_dir) as folder,
        closing(EvaluatedBundle(bundle, device=device)) as evaluated,
        np.errstate(all="ignore"),
    ):
        check_canary(evaluated.engine, bundle)
        check_n_bits(evaluated.engine, bundle)
        say("reading held-out images")
        images = _held_out(evaluated, bundle, data, say)
        copy = Bundle(folder, type(bundle.manifest)())
        copy.manifest.CopyFrom(bundle.manifest)
        del copy.manifest.files[:]
        for file in bundle.manifest.files:
            if file.name in (CALIBRATION, FLOW):  # both are written anew, with the manifest
                continue
            (folder / file.name).write_bytes(bundle.read(file.name))
            copy.manifest.files.append(file)
        copy.manifest.created_at.GetCurrentTime()
        operations = next(file.operations for file in copy.manifest.files if file.name == FORWARD)
        scored = scored_images(images, operations)
        say(f"scoring {len(scored.calibration)} images, and {len(scored.fitting)} for a density")
        add_calibration(copy, calibrate_scores(copy, evaluated.engine, scored, _BATCH), data)
        return publish(copy, model_dir)


def _held_out(
    evaluated: EvaluatedBundle, bundle: Bundle, data: str, say: Callable[[str], None]
) -> HeldOutImages:
    """The images of the data that the bundle was calibrated on; if there are none of these, its held-out images."""
    config = replace(training_data(bundle), data=data)
    images = load_held_out(config)
    if images.validation.shape[1:] != bundle.shape:
        raise ExportError(
            f"data {data!r} has images of shape {list(images.validation.shape[1:])}, and the model takes "
            f"{list(bundle.shape)}"
        )
    if evaluated.is_calibrated_on(images.for_percentiles):
        return images
    # A bundle does not say by which rule its images were split, but its percentiles tell.
    old = load_held_out(replace(config, split_version=1))
    if evaluated.is_calibrated_on(old.for_percentiles):
        return old
    say(
        f"warning: {data!r} does not yield the images that the bundle was calibrated on before; p-values mean "
        "nothing if the model was trained on any of the new ones"
    )
    return images
