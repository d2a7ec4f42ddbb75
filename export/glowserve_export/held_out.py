"""The held-out images of an export: to verify the graphs on, and to compute percentiles from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from glowserve_training.data import DataConfig, HeldOutImages, load_held_out
from glowserve_training.errors import HeldOutError

from glowserve_export.errors import DataChangedError, ExportError
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
