"""The held-out images of an export, to verify the graphs on and to compute percentiles from; and those of a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from glowserve_training.data import DataConfig, HeldOutImages, load_held_out
from glowserve_training.errors import DataError, HeldOutError

from glowserve.runtime.repository import Bundle
from glowserve_export.errors import DataChangedError, ExportError
from glowserve_export.evaluation import EvaluatedBundle, training_data
from glowserve_export.source import Source


def held_out_config(source: Source, data: str | None) -> DataConfig:
    """The data to take held-out images from.

    Args:
        source: the model.
        data: the user's choice; None for the training data.

    Raises:
        ExportError: the training data is unknown and `data` is None.
    """
    if source.data is not None:
        return replace(source.data, data=data) if data else source.data
    if data is None:
        raise ExportError(
            "the checkpoint does not say what data the model was trained on: give images that it was not trained on "
            "with --data"
        )
    return DataConfig(data=data, image_size=source.glow.image_size, channels=source.glow.channels)


def load_held_out_images(source: Source, config: DataConfig, say: Callable[[str], None]) -> HeldOutImages:
    """Loads the images that were held out in training, or others if the user chose other data.

    Args:
        source: the model.
        config: see `held_out_config`.
        say: called with a warning if some images, or all, are others than those held out.

    Raises:
        DataChangedError: the training data no longer has most of the images.
        glowserve_training.errors.TrainingError: the images cannot be read.
    """
    if source.held_out is None:
        return load_held_out(config)
    try:
        return source.held_out.load(None if config == source.data else config.data, say)
    except HeldOutError as error:
        raise DataChangedError(str(error)) from error


def held_out_of_bundle(
    bundle: Bundle, model: EvaluatedBundle, data: str | None, say: Callable[[str], None]
) -> tuple[str, HeldOutImages]:
    """The data of a bundle's held-out images, and the images.

    Args:
        bundle: the bundle.
        model: the same bundle, opened.
        data: the user's choice; None for the training data.
        say: called with a warning if they are not the images that the bundle's percentiles were computed from.

    Raises:
        ExportError: the training data is unknown and `data` is None.
        DataError: the images cannot be read.
    """
    if not (data or bundle.manifest.training.data):
        raise ExportError(
            f"{bundle.path} was trained by a public implementation and does not say on what data: give --data"
        )
    config = training_data(bundle)
    trained_on, config = not data, replace(config, data=data or config.data)
    images = _load_for_bundle(config, trained_on=trained_on)
    calibrated_elsewhere = trained_on and bundle.manifest.calibration.data != config.data
    if calibrated_elsewhere or model.is_calibrated_on(images.for_percentiles):
        return config.data, images
    # A bundle does not say by which rule its images were split, but its percentiles tell.
    old = _load_for_bundle(replace(config, split_version=1), trained_on=trained_on)
    if model.is_calibrated_on(old.for_percentiles):
        return config.data, old
    say(
        f"warning: {config.data!r} does not yield the images that the bundle's percentiles were computed from; the "
        "results are meaningless if the model was trained on any of these images. Give RUN_DIR/held_out.npz with "
        "--data, if the run kept it, or evaluate the checkpoint"
    )
    return config.data, images


def _load_for_bundle(config: DataConfig, *, trained_on: bool) -> HeldOutImages:
    try:
        return load_held_out(config)
    except DataError as error:
        if not trained_on:
            raise
        raise DataError(f"{error}. If the data has moved, give its new path with --data") from error
