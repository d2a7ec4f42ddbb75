"""The classes of a source's images, by number."""

from __future__ import annotations

from collections.abc import Mapping

from glowserve_training.config import DataConfig
from glowserve_training.data.labelled import open_labelled
from glowserve_training.data.labels import UNLABELLED, LabelColumn
from glowserve_training.errors import DataError


def find_label_column(data: str, name: str | None) -> LabelColumn:
    """The column that holds the classes of a source's images.

    Args:
        data: see `DataConfig`.
        name: the column's name; None if the source has one column of labels.

    Raises:
        DataError: there is no such column, or there are several to choose from.
    """
    columns = open_labelled(data, [] if name is None else [name]).columns
    if len(columns) > 1:
        names = ", ".join(repr(column.name) for column in columns)
        raise DataError(
            f"data {data!r} has {len(columns)} columns of labels, {names}: choose with --label-column"
        )
    return columns[0]


def read_classes(config: DataConfig) -> Mapping[str, int]:
    """The class of each image, a number in `config.classes`, by its key: see `SourceImages.key`.

    Raises:
        DataError: there is no such column, an image has no label, or one that is none of the classes.
    """
    column = find_label_column(config.data, config.label_column)
    numbers = {name: number for number, name in enumerate(config.classes)}
    classes: dict[str, int] = {}
    for images, codes in column.codes.items():
        for index, code in enumerate(codes.tolist()):
            name = None if code == UNLABELLED else column.classes[code]
            if name not in numbers:
                raise DataError(_no_class(config, column, images.name(index), name))
            classes[images.key(index)] = numbers[name]
    return classes


def _no_class(config: DataConfig, column: LabelColumn, image: str, name: str | None) -> str:
    where = f"column {column.name!r}" if column.name else "the folders of classes"
    found = "has no label" if name is None else f"has the label {name!r}"
    return (
        f"data {config.data!r}: {image} {found} in {where}; it must be one of the classes "
        f"{', '.join(map(repr, config.classes[:20]))}{', ...' if len(config.classes) > 20 else ''}"
    )
