"""The held-out images of an export, to verify the graphs on and to compute percentiles from; and those of a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from glowserve_training.data import DataConfig, HeldOutImages, load_held_out, load_unseen, read_held_out
from glowserve_training.data.classes import find_label_column, read_classes
from glowserve_training.errors import DataError, HeldOutError, TooFewImagesError

from glowserve.runtime.repository import Bundle
from glowserve_export.errors import DataChangedError, ExportError
from glowserve_export.evaluation import COMPARED_IMAGES, EvaluatedBundle, training_data
from glowserve_export.source import Source

Rule = Callable[[DataConfig, int | None], HeldOutImages]
"""Loads the held-out images of data, split by one of the rules that there have been; see `load_held_out`."""


def held_out_config(
    source: Source,
    data: str | None,
    label_column: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> DataConfig:
    """The data to take held-out images from.

    Args:
        source: the model.
        data: the user's choice; None for the training data.
        label_column: the column of labels in other data, for a class-conditional model; None if it has one.
        say: called with a warning if other data has no labels of the model's classes.

    Raises:
        ExportError: the training data is unknown and `data` is None.
        DataError: there is no such column of labels.
    """
    if data is None:
        if source.data is None:
            raise ExportError(
                "the checkpoint does not say what data the model was trained on: give images that it was not trained "
                "on with --data"
            )
        if label_column is not None:
            raise DataError(
                f"label_column is {label_column!r}, and the labels are those of training: give --data, too, or leave "
                "it out"
            )
        return source.data
    own = source.data or DataConfig(
        data=data, image_size=source.glow.image_size, channels=source.glow.channels
    )
    return _with_labels(
        replace(own, data=data), [each.name for each in source.flow.classes], label_column, say
    )


def _with_labels(
    config: DataConfig, classes: Sequence[str], column: str | None, say: Callable[[str], None]
) -> DataConfig:
    """The data with the column of its labels, if a model has classes and the data has labels of them.

    Args:
        config: the data.
        classes: the names of the model's classes.
        column: the user's choice; None if the data has one.
        say: called with a warning if it has none.

    Raises:
        DataError: the column that the user has chosen cannot be used, or the data is the file of a run with other
            classes.
    """
    if (kept := read_held_out(Path(config.data))) is not None:  # it has the labels, too
        _check_kept(kept, config.data, classes, column)
        return config
    unlabelled = replace(config, label_column=None, classes=())
    if not classes:
        if column is not None:
            raise DataError(f"label_column is {column!r}, and the model has no classes; leave it out")
        return unlabelled
    try:
        found = find_label_column(config.data, column)
        labelled = replace(config, label_column=found.name, classes=tuple(classes))
        read_classes(labelled)
    except DataError as error:
        if column is not None:
            raise
        say(f"warning: scores given a class are left out, since they take labelled images: {error}")
        return unlabelled
    return labelled


def _check_kept(kept: HeldOutImages, data: str, classes: Sequence[str], column: str | None) -> None:
    """Checks that the labels of a file that a run kept are those of a model. Older files have no names of classes."""
    if column is not None:
        raise DataError(f"label_column is {column!r}, and {data!r} has one kind of labels; leave it out")
    if not (kept.classes and classes):
        return
    quoted = zip_longest(map(repr, kept.classes), map(repr, classes), fillvalue="missing")
    for number, (theirs, ours) in enumerate(quoted):
        if theirs != ours:
            raise DataError(
                f"class {number} is {theirs} in {data!r} and {ours} in the model: give the held_out.npz of its own "
                "run, or other data, with --data"
            )


def load_held_out_images(source: Source, config: DataConfig, say: Callable[[str], None]) -> HeldOutImages:
    """Loads the images that were held out in training, or others if the user chose other data: all of them.

    Args:
        source: the model.
        config: see `held_out_config`.
        say: called with a warning if some images, or all, are others than those held out.

    Raises:
        DataChangedError: the training data no longer has most of the images.
        glowserve_training.errors.TrainingError: the images cannot be read.
    """
    if source.held_out is None:
        return load_unseen(config)
    try:
        return source.held_out.load(None if config == source.data else config.data, say)
    except HeldOutError as error:
        raise DataChangedError(str(error)) from error


def held_out_of_bundle(
    bundle: Bundle, model: EvaluatedBundle, data: str | None, say: Callable[[str], None]
) -> tuple[str, HeldOutImages]:
    """The data of a bundle's held-out images, and the images.

    A bundle does not say by which rule its images were split, but the scores of its calibration images tell. If no rule
    yields these, the training data is split as in training, and all of other data is taken for images that the model
    was not trained on.

    Args:
        bundle: the bundle.
        model: the same bundle, opened.
        data: the user's choice; None for the training data.
        say: called with a warning if they are not the images that the bundle's percentiles were computed from.

    Raises:
        ExportError: the training data is unknown and `data` is None.
        DataError: the images cannot be read, or are too few.
    """
    if not (chosen := data or bundle.manifest.training.data):
        raise ExportError(
            f"{bundle.path} was trained by a public implementation and does not say on what data: give --data"
        )
    return chosen, _held_out_of_bundle(bundle, model, replace(training_data(bundle), data=chosen), data, say)


def _held_out_of_bundle(
    bundle: Bundle,
    model: EvaluatedBundle,
    config: DataConfig,
    data: str | None,
    say: Callable[[str], None],
) -> HeldOutImages:
    """See `held_out_of_bundle`; `config` has the data."""
    trained_on, calibrated_on = bundle.manifest.training.data, bundle.manifest.calibration.data
    ours = trained_on and os.path.realpath(config.data) == os.path.realpath(trained_on)
    calibrated_elsewhere = not data and calibrated_on != trained_on
    try:
        found = None if calibrated_elsewhere else _find_rule(model, config)
        images = (found or (load_held_out if ours else load_unseen))(config, None)
    except DataError as error:
        if data:
            raise
        raise DataError(f"{error}. If the data has moved, give its new path with --data") from error
    if not (found or calibrated_elsewhere):
        remedy = ". Give RUN_DIR/held_out.npz with --data, if the run kept it, or evaluate the checkpoint"
        say(
            f"warning: {config.data!r} does not yield the images that the bundle's percentiles were computed from; the "
            f"results are meaningless if the model was trained on any of these images{remedy if trained_on else ''}"
        )
    return images


def images_to_calibrate(
    bundle: Bundle,
    model: EvaluatedBundle,
    data: str,
    label_column: str | None,
    say: Callable[[str], None],
) -> HeldOutImages:
    """The images to renew a bundle's calibration with: those of `held_out_of_bundle`.

    The training data of an imported model is unknown. All that is given for it was not trained on, whatever rule the
    images of its calibration were split by before.

    Args:
        bundle: the bundle.
        model: the same bundle, opened.
        data: the user's choice.
        label_column: see `held_out_config`.
        say: called with a warning if the model may have been trained on some of them.

    Raises:
        DataError: the images cannot be read, or are too few.
    """
    config = _with_labels(replace(training_data(bundle), data=data), bundle.classes, label_column, say)
    if bundle.manifest.training.data:
        return _held_out_of_bundle(bundle, model, config, data, say)
    return load_unseen(config)


def _find_rule(model: EvaluatedBundle, config: DataConfig) -> Rule | None:
    """The rule that yields the images that a bundle is calibrated on; None if no rule does."""
    for rule in (_load_held_out_by_version_1, load_held_out, load_unseen):
        with suppress(TooFewImagesError):  # another rule may have enough
            if model.is_calibrated_on(rule(config, COMPARED_IMAGES).for_percentiles):
                return rule
    return None


def _load_held_out_by_version_1(config: DataConfig, most: int | None = None) -> HeldOutImages:
    return load_held_out(replace(config, split_version=1), most)
