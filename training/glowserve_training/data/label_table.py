"""The table of a folder's labels, labels.csv: a header, then a row for each image, which begins with its path."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glowserve.output import printable
from glowserve_training.errors import DataError

TABLE = "labels.csv"


@dataclass(frozen=True)
class LabelTable:
    """The content of labels.csv."""

    columns: Sequence[str]
    """The names of the columns of labels."""

    rows: Mapping[str, Sequence[str]]
    """The labels of each image, one for each column, by its path from the folder."""


def read_table(file: Path) -> LabelTable:
    """Reads labels.csv.

    Raises:
        DataError: it cannot be read, has no columns of labels, or two rows of one image.
    """
    name = printable(str(file))
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            header, *rows = csv.reader(opened, strict=True)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise DataError(f"{name} cannot be read as CSV in UTF-8 with a header: {error}; repair it") from error
    columns = [column.strip() for column in header[1:]]
    if not columns or "" in columns or len(set(columns)) < len(columns):
        raise DataError(
            f"{name} has the header {','.join(header)[:200]!r}; it must be a name for the files, and then a different "
            "name for each column of labels, such as file,smiling,glasses"
        )
    labels: dict[str, Sequence[str]] = {}
    for row in filter(None, rows):
        image = row[0].strip().removeprefix("./")
        if len(row) != len(header):
            raise DataError(
                f"{name}: the row of {image!r:.200} has {len(row)} cells, and the header {len(header)}; repair it"
            )
        if image in labels:
            raise DataError(f"{name} has two rows of {image!r:.200}; remove one")
        labels[image] = row[1:]
    return LabelTable(columns, labels)
