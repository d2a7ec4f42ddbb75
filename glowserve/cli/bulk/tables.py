"""Writes rows as a table: CSV with the standard library, or Parquet with pyarrow.

The columns are `path`, the scores under their names, and `error`. Both files appear under their name once they are
complete. A score that is missing is empty in CSV and null in Parquet; infinity is `inf` in CSV.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from glowserve.cli.bulk.journal import Header
from glowserve.cli.bulk.rows import Row, Value, as_text
from glowserve.cli.failure import Failure
from glowserve.files import atomic_write
from glowserve.output import printable
from glowserve.scores import TABLE, Score

WriteTable = Callable[[Path, Header, Iterable[Row]], None]
"""Writes the file of a path."""

# Rows of Parquet that are together in memory, and then in one row group.
_ROW_GROUP = 65_536


def table_writer(out: Path) -> WriteTable:
    """What writes a file, by its suffix.

    Raises:
        Failure: the suffix is another, or the package that writes it is not installed.
    """
    suffix = out.suffix.lower()
    if suffix == ".csv":
        return write_csv
    if suffix != ".parquet":
        raise Failure(f"--out is {printable(str(out))}; its name must end in .parquet or .csv", 2)
    try:
        import pyarrow.parquet  # noqa: F401  # before hours of work, not after
    except ModuleNotFoundError as error:
        raise Failure(
            f"a .parquet file needs {error.name}, which is not installed: pip install 'glowserve[parquet]'; "
            "or choose a .csv file",
            2,
        ) from None
    return write_parquet


def write_csv(path: Path, header: Header, rows: Iterable[Row]) -> None:
    """Writes UTF-8 with a line of names."""
    with atomic_write(path) as file:
        table = csv.writer(codecs.getwriter("utf-8")(file), lineterminator="\n")
        table.writerow(["path", *header.columns, "error"])
        empty = [None] * len(header.columns)
        for row in rows:
            table.writerow([as_text(row.path), *map(_csv_value, row.values or empty), row.error])


def write_parquet(path: Path, header: Header, rows: Iterable[Row]) -> None:
    """Writes row groups of some 65,000 rows, and what they have in common as the metadata of the schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    common = {"model": header.model, "version": header.version, **header.wanted}
    schema = pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            *(pa.field(name, _type(TABLE[name])) for name in header.columns),
            pa.field("error", pa.string()),
        ],
        metadata={f"glowserve.{name}": json.dumps(value) for name, value in common.items()},
    )
    remaining = iter(rows)
    with atomic_write(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(itertools.islice(remaining, _ROW_GROUP)):
            writer.write_table(pa.table(_columns(group, header), schema=schema))


def _type(score: Score) -> Any:
    """The type of a column in Parquet."""
    import pyarrow as pa

    value = pa.from_numpy_dtype(np.dtype(score.dtype))
    return pa.list_(value) if score.by else value


def _columns(rows: list[Row], header: Header) -> list[list[Any]]:
    empty: list[Value] = [None] * len(header.columns)
    scores = zip(*(row.values or empty for row in rows), strict=True)
    return [[as_text(row.path) for row in rows], *map(list, scores), [row.error for row in rows]]


def _csv_value(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else json.dumps(value) if isinstance(value, list) else repr(value)
