"""Computes the attributes of a bundle from labelled images: a direction in the latent space for each label.

An attribute's direction is the mean latent of the images that have it minus that of the images that do not, as in
Kingma and Dhariwal 2018, "Glow", section 6, "Semantic Manipulation". Other images tell whether the direction means
anything: how many of them lie on their side of the middle between the two means.

Shapes: N images, K columns of labels, A attributes, D = H * W * C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from glowserve_training.data import choose_splits
from glowserve_training.data.labelled import Labelled, LabelledImages, open_labelled, read_labelled
from glowserve_training.data.labels import UNLABELLED, Codes, LabelColumn

from glowserve.output import counted
from glowserve.runtime.attributes import (
    LONGEST_NAME,
    MOST_ATTRIBUTES,
    MOST_BYTES,
    Attributes,
    write_attributes,
)
from glowserve.runtime.canary import check_canary
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.randomness import ENCODING_NOISE
from glowserve.runtime.repository import ATTRIBUTES, FORWARD, Bundle
from glowserve_export import workload
from glowserve_export.errors import ExportError
from glowserve_export.evaluation import training_data
from glowserve_export.next_version import next_version
from glowserve_export.publication import add_file, publish

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# More hardly move a mean, and have to fit into memory.
_MOST_IMAGES = 20_000
_BATCH = 32
# Images with and without a label to compute its direction from, and held-out ones to test it.
_FEWEST = (2, 2, 1, 1)
_NEEDS = "a direction takes two of each, and one more of each to test it"
# So many standard errors above chance are more than chance.
_STANDARD_ERRORS = 2


@dataclass(frozen=True)
class MeasuredAttribute:
    """An attribute, and what it comes from."""

    name: str

    separated: float
    """See `Attributes.separated`."""

    having: int
    """The images that have it, of those that the direction comes from."""

    lacking: int
    """The images that do not."""

    held_out_having: int
    """The held-out images that have it."""

    held_out_lacking: int
    """The held-out images that do not."""

    @property
    def is_chance(self) -> bool:
        """Whether a direction that means nothing would often separate as much."""
        variance = (1 / self.held_out_having + 1 / self.held_out_lacking) / 16
        return self.separated < 0.5 + _STANDARD_ERRORS * math.sqrt(variance)


@dataclass(frozen=True)
class _Label:
    """What may become an attribute: a class of a column."""

    name: str
    column: int
    code: int


def add_attributes(
    bundle: Bundle, data: str, columns: Sequence[str], *, device: str = "auto", say: Callable[[str], None]
) -> tuple[Bundle, list[MeasuredAttribute]]:
    """Writes a bundle's graphs with attributes as the next version of its model; those it had before are replaced.

    Args:
        bundle: the bundle; it stays as it is.
        data: images with labels; see `open_labelled`.
        columns: the names of the columns of labels; none for all that are known to be some.
        device: "auto", "cpu" or "cuda".
        say: called with a line of text when a stage begins, and with warnings.

    Returns:
        The new bundle, and its attributes.

    Raises:
        ExportError: there are too many attributes, or none has enough images, or the folder is no version of a model;
            nothing was written.
        glowserve.runtime.errors.GlowserveError: the bundle is damaged, or the device cannot be used.
        glowserve_training.errors.TrainingError: the images cannot be read, or have no such labels.
    """
    with (
        next_version(bundle, replaced=(ATTRIBUTES,)) as copy,
        closing(Engine(bundle, RuntimeConfig(device=device))) as engine,
        np.errstate(all="ignore"),  # latents may be infinite
    ):
        check_canary(engine, bundle)
        labelled = open_labelled(data, columns)
        labels = _labels(labelled.columns, bundle.manifest.image.latent_size)
        say("reading images with labels")
        training, held_out = _read(bundle, labelled, data)
        say(
            f"encoding {len(training.images)} images for directions, and {len(held_out.images)} others to test them"
        )
        attributes, measured = _measure(engine, labels, training, held_out, say)
        add_file(copy, ATTRIBUTES, write_attributes(attributes))
        return publish(copy), measured


def _labels(columns: Sequence[LabelColumn], size: int) -> list[_Label]:
    """A label for each column of yes and no, and one for each class of other columns.

    Raises:
        ExportError: there are too many, or a name is too long or comes twice.
    """
    labels = []
    for i, column in enumerate(columns):
        if column.yes is not None and column.name:
            labels.append(_Label(column.name, i, column.yes))
        else:
            prefix = f"{column.name}=" if column.name else ""
            labels += [_Label(f"{prefix}{name}", i, code) for code, name in enumerate(column.classes)]
    most = min(MOST_ATTRIBUTES, MOST_BYTES // (4 * size))
    if len(labels) > most:
        raise ExportError(
            f"the labels make {len(labels)} attributes of {size} values, and a bundle may have {most}; choose fewer "
            "with --label-column"
        )
    for label in labels:
        if len(label.name) > LONGEST_NAME or [other.name for other in labels].count(label.name) > 1:
            raise ExportError(
                f"the attribute {label.name[:LONGEST_NAME]!r} has a name that comes twice, or has more than "
                f"{LONGEST_NAME} characters; rename it"
            )
    return labels


def _read(bundle: Bundle, labelled: Labelled, data: str) -> tuple[LabelledImages, LabelledImages]:
    """The images that directions come from, and others to test them: fewer if the model is large."""
    config = replace(training_data(bundle), data=data)
    splits = choose_splits(labelled.source, config)
    held_out = [splits[name] for name in ("test", "validation", "calibration") if name in splits]
    operations = next(file.operations for file in bundle.manifest.files if file.name == FORWARD)
    most = workload.percentile_images(operations, _MOST_IMAGES)
    return read_labelled(labelled, [splits["train"]], config, most), read_labelled(
        labelled, held_out, config, most
    )


def _measure(
    engine: Engine,
    labels: Sequence[_Label],
    training: LabelledImages,
    held_out: LabelledImages,
    say: Callable[[str], None],
) -> tuple[Attributes, list[MeasuredAttribute]]:
    """The attributes of all labels with enough images, and what they come from.

    Raises:
        ExportError: there is none.
    """
    sets = (training, held_out)
    counts = np.concatenate([_known(labels, images.codes).sum(axis=2) for images in sets])  # [4, A]
    kept = _with_enough_images(labels, counts, say)
    means = _means(engine, [labels[i] for i in kept], training)
    directions = (means[0] - means[1]).astype(np.float32)
    separated = _separated(engine, [labels[i] for i in kept], held_out, directions, means.mean(axis=0))
    if not (np.isfinite(directions).all() and np.isfinite(separated).all()):
        raise ExportError(
            "a direction is not finite: the model diverged; export an earlier checkpoint, or train with a lower "
            "learning rate. Nothing was written"
        )
    measured = [
        MeasuredAttribute(labels[i].name, share, *counts[:, i].tolist())
        for i, share in zip(kept, separated.tolist(), strict=True)
    ]
    for each in measured:
        if each.is_chance:
            say(
                f"warning: {each.name} separates {each.separated:.1%} of the held-out images, no more than chance: its "
                "direction means nothing to this model"
            )
    names = tuple(each.name for each in measured)
    return Attributes(names, directions, separated.astype(np.float32)), measured


def _with_enough_images(
    labels: Sequence[_Label], counts: npt.NDArray[np.int64], say: Callable[[str], None]
) -> list[int]:
    """The indices of the labels with enough images, of those whose numbers are `counts`, [4, A].

    Raises:
        ExportError: there is none.
    """
    enough = (counts >= np.array(_FEWEST)[:, None]).all(axis=0)
    for i in np.flatnonzero(~enough).tolist():
        having, lacking, held_out_having, held_out_lacking = counts[:, i].tolist()
        say(
            f"warning: {labels[i].name} is left out: {counted(having, 'image')} with it and {lacking} without, and of "
            f"the held-out ones {held_out_having} and {held_out_lacking}; {_NEEDS}"
        )
    if not enough.any():
        raise ExportError(
            f"no label has enough images: {_NEEDS}; give more images with labels. Nothing was written"
        )
    kept: list[int] = np.flatnonzero(enough).tolist()
    return kept


def _known(labels: Sequence[_Label], codes: Codes) -> BoolArray:
    """Which images, of codes [N, K], have each label, and which of them do not: [2, A, N]."""
    own = codes[:, [label.column for label in labels]].T  # [A, N]
    having = own == np.array([label.code for label in labels])[:, None]
    return np.stack([having, ~having & (own != UNLABELLED)])


def _means(engine: Engine, labels: Sequence[_Label], images: LabelledImages) -> Float64Array:
    """The mean latents of the images with and without each label, [2, A, D]. Only finite latents count."""
    sums: Float64Array | float = 0.0
    counts: npt.NDArray[np.int64] | int = 0
    for latents, codes in _latents(engine, images):
        known = _known(labels, codes)
        sums = sums + known @ latents
        counts = counts + known.sum(axis=2)
    means: Float64Array = sums / np.asarray(counts)[..., None]
    return means


def _separated(
    engine: Engine,
    labels: Sequence[_Label],
    images: LabelledImages,
    directions: npt.NDArray[np.float32],
    middle: Float64Array,
) -> Float64Array:
    """`Attributes.separated` of directions [A, D] from the middle between the means, [A, D]."""
    exact = directions.astype(np.float64)
    thresholds = (exact * middle).sum(axis=1)[:, None]
    right: npt.NDArray[np.int64] | int = 0
    counts: npt.NDArray[np.int64] | int = 0
    for latents, codes in _latents(engine, images):
        known = _known(labels, codes)
        beyond = exact @ latents.T > thresholds  # [A, N]
        right = right + (known & np.stack([beyond, ~beyond])).sum(axis=2)
        counts = counts + known.sum(axis=2)
    shares: Float64Array = np.asarray(right / np.asarray(counts)).mean(axis=0)
    return shares


def _latents(engine: Engine, images: LabelledImages) -> Iterator[tuple[Float64Array, Codes]]:
    """The finite latents of images as `Encode` computes them, [N, D], and their codes, [N, K], batch by batch."""
    for batch in workload.batches(len(images.images), _BATCH, "encoding"):
        noise = np.full(images.images[batch].shape, ENCODING_NOISE, np.float32)
        latents = engine.forward(images.images[batch], noise).latent
        finite = np.isfinite(latents).all(axis=1)
        yield latents[finite].astype(np.float64), images.codes[batch][finite]
