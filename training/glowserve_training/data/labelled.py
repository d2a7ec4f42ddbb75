"""Images with labels: from folders, arrays, parquet files, datasets of the Hugging Face hub, and scikit-learn's digits.

    labelled = open_labelled("photographs/")
    for column in labelled.columns: ...
    splits = choose_splits(labelled.source, config)
    images = read_labelled(labelled, [splits["train"]], config, most=10_000)

Shapes: N images, H W C, K columns of labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from glowserve.cores import cores
from glowserve.images import InvalidImageError, UInt8Array
from glowserve.output import printable
from glowserve_training.config import DataConfig
from glowserve_training.data.label_table import TABLE, read_table
from glowserve_training.data.labels import Codes, LabelColumn, column_of
from glowserve_training.data.parallel import prepare_in_parallel
from glowserve_training.data.source_images import SourceImages
from glowserve_training.data.sources import DIGITS, Source, open_source, read_arrays
from glowserve_training.data.splits import Split
from glowserve_training.data.unreadable import UnreadableImages
from glowserve_training.errors import DataError

# Columns that hold labels where no type says so.
_USUAL = ("labels", "label")

Values = Mapping[SourceImages, Sequence[Any]]


@dataclass(frozen=True)
class Labelled:
    """A source of images with labels."""

    source: Source
    """The images, by split."""

    columns: tuple[LabelColumn, ...]
    """The labels; one column or more."""


@dataclass(frozen=True)
class LabelledImages:
    """Prepared images with labels."""

    images: UInt8Array
    """uint8 [N, H, W, C]."""

    codes: Codes
    """The class of each image in each column, [N, K]; UNLABELLED if it has none."""


def open_labelled(data: str, names: Sequence[str] = ()) -> Labelled:
    """Opens a source of images with labels.

    Args:
        data: a folder with a file labels.csv; a folder with a folder for each class, or with such folders in "train",
            "validation" and "test"; an .npz file, in which column NAME is the array NAME or SPLIT_NAME; a .parquet
            file, a folder of such files, or a dataset's name on the Hugging Face hub; or "digits".
        names: of the columns of labels. None: all of labels.csv; of a dataset, those whose type has classes; else
            "labels" or "label".

    Raises:
        DataError: there is no such source, or it has no such column; the message says which there are.
    """
    source = open_source(data)
    path = Path(data)
    if data == DIGITS:
        columns = _chosen(data, names, ["digit"], _digits(source))
    elif source.files is not None:
        found = _table(path, source) if (path / TABLE).is_file() else _folders(data, source)
        columns = _chosen(data, names, list(found), found)
    elif path.suffix == ".npz":
        columns = _arrays(path, source, names)
    else:
        columns = _dataset(data, source, names)
    return Labelled(source, tuple(columns))


def read_labelled(
    labelled: Labelled, splits: Sequence[Split], config: DataConfig, most: int
) -> LabelledImages:
    """Reads and prepares images of some splits, with their labels.

    Unreadable images are skipped, and reported in one line on stderr.

    Args:
        labelled: the source.
        splits: of `choose_splits`, of that source.
        config: the images' shape and preparation.
        most: how many images to read; the first of each split, which are in random order, and of each the same share.

    Raises:
        DataError: more than 1 in 10 images are unreadable, or none is left.
    """
    total = sum(len(indices) for _, indices in splits)
    share = min(1.0, most / max(1, total))
    wanted = [
        (images, int(index)) for images, indices in splits for index in indices[: round(share * len(indices))]
    ]
    pictures, codes, unreadable = [], [], UnreadableImages()
    with (
        tqdm(total=len(wanted), desc="reading images", unit="", leave=False, disable=None) as progress,
        ThreadPoolExecutor(cores()) as pool,
    ):
        prepared = prepare_in_parallel(wanted, config, pool)
        for (images, index), picture in zip(wanted, prepared, strict=True):
            progress.update()
            if isinstance(picture, InvalidImageError):
                unreadable.add(images.name(index), picture)
                continue
            pictures.append(picture)
            codes.append([column.codes[images][index] for column in labelled.columns])
    unreadable.check(config.data, len(wanted), len(wanted))
    unreadable.report(len(wanted))
    if not pictures:
        raise DataError(f"data {config.data!r}: no image can be read: {unreadable}; repair them")
    return LabelledImages(np.stack(pictures), np.array(codes, np.int64))


def _chosen(
    data: str, names: Sequence[str], default: Sequence[str], found: Mapping[str, Values]
) -> list[LabelColumn]:
    return [column_of(name, found[name]) for name in _checked(data, names, default, list(found))]


def _checked(data: str, names: Sequence[str], default: Sequence[str], there: Sequence[str]) -> list[str]:
    """The names of the columns to read: those that were asked for, each once, or the default.

    Raises:
        DataError: one is not there, or none is, or there is no default.
    """
    chosen = list(dict.fromkeys(names or default))
    if not there:
        raise DataError(
            f"data {data!r} has no labels; give images in a folder for each class, with a labels.csv, in a file with a "
            "column of classes, or in an .npz file with an array of classes for each of images"
        )
    listed = ", ".join(map(repr, there))
    if not chosen:
        raise DataError(
            f"data {data!r} has no column that is known to hold labels; its columns are {listed}: choose with "
            "--label-column"
        )
    for name in chosen:
        if name not in there:
            raise DataError(f"data {data!r} has no column of labels {name!r}; its columns are {listed}")
    return chosen


def _digits(source: Source) -> dict[str, Values]:
    from sklearn.datasets import load_digits

    return {"digit": {source["train"]: load_digits().target.tolist()}}


def _table(path: Path, source: Source) -> dict[str, Values]:
    """The columns of labels.csv."""
    table = read_table(path / TABLE)
    splits = {images: images.names or [] for images in source.values()}
    if not any(name in table.rows for some in splits.values() for name in some):
        example = next(iter(splits.values()))[0]
        raise DataError(
            f"{printable(str(path / TABLE))} names no image of the folder; a row must begin with a path such as "
            f"{printable(example)}"
        )
    nothing = [""] * len(table.columns)
    return {
        column: {
            images: [table.rows.get(name, nothing)[i] for name in some] for images, some in splits.items()
        }
        for i, column in enumerate(table.columns)
    }


def _folders(data: str, source: Source) -> dict[str, Values]:
    """The column of the classes that the folders of images are, below those of splits."""
    names = [name for images in source.values() for name in images.names or []]
    depth = 1 if len(source) > 1 or all(name.startswith("train/") for name in names) else 0
    for name in names:
        if name.count("/") <= depth:
            raise DataError(
                f"data {data!r} has no labels: there is no {TABLE} in it, and {printable(name)} lies in no folder of a "
                "class"
            )
    return {
        "": {images: [name.split("/")[depth] for name in images.names or []] for images in source.values()}
    }


def _arrays(path: Path, source: Source, names: Sequence[str]) -> list[LabelColumn]:
    """Columns that are arrays beside those of images, NAME or SPLIT_NAME."""
    there, found = _array_columns(path), {}
    for name in _checked(str(path), names, [name for name in _USUAL if name in there][:1], there):
        arrays = read_arrays(path, name)[1]
        found[name] = {images: _labels_of(path, images, arrays, name).tolist() for images in source.values()}
    return [column_of(name, values) for name, values in found.items()]


def _array_columns(path: Path) -> list[str]:
    """The names of arrays that may be labels, without the names of splits before them."""
    names, images = read_arrays(path, "images")
    prefixes = [name.removesuffix("images") for name in images]
    columns = {name.removeprefix(prefix) for name in names for prefix in prefixes if name.startswith(prefix)}
    return sorted(columns - {"images"} - set(images))


def _labels_of(path: Path, images: SourceImages, arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """The labels of a split, [N]."""
    key = f"{images.split}_{name}"
    labels = arrays.get(key, arrays.get(name))
    if labels is None:
        raise DataError(f"{path} has no array {key!r}, the labels of {images.split!r}; save one")
    if labels.shape != (len(images),) or labels.dtype.kind not in "biuUS":
        raise DataError(
            f"{path}: the labels {name!r} of {images.split!r} are {labels.dtype} {list(labels.shape)}; they must be "
            f"integers or words {[len(images)]}, one for each image"
        )
    return labels.astype(np.str_) if labels.dtype.kind == "S" else labels


def _dataset(data: str, source: Source, names: Sequence[str]) -> list[LabelColumn]:
    """Columns of parquet files and of datasets of the hub; their types may name the classes."""
    features = source["train"].features
    typed = [name for name, feature in features.items() if hasattr(feature, "names")]
    usual = [name for name in _USUAL if name in features][:1]
    columns = []
    for name in _checked(data, names, typed or usual, list(features)):
        values = {images: _column(data, images, name) for images in source.values()}
        columns.append(column_of(name, values, getattr(features[name], "names", None)))
    return columns


def _column(data: str, images: SourceImages, name: str) -> Sequence[Any]:
    if name not in images.features:
        raise DataError(f"data {data!r} has no column {name!r} in its split {images.split!r}")
    return images.values(name)
