"""The pictures in a Parquet file, as the library `datasets` and the Hugging Face hub store them.

A picture is named by the file and its row: test.parquet[17]. Rows are read from the first to the last, some at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from glowserve.cli.failure import Failure
from glowserve.images import InvalidImageError, read_file
from glowserve.output import printable

SUFFIX = ".parquet"

_NAME = re.compile(r"(.+\.parquet)\[(\d{1,15})\]", re.DOTALL | re.IGNORECASE)
# The names of columns that training takes for images.
_COLUMNS = ("image", "img", "images", "jpg", "png")
# Rows in memory.
_ROWS = 64


class PictureTable:
    """A Parquet file with a column of pictures.

    Args:
        path: the file.

    Raises:
        Failure: pyarrow is not installed, or the file is no such table.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        parquet = _pyarrow_parquet()
        import pyarrow as pa

        try:
            self._file = parquet.ParquetFile(path)
            self._column = _picture_column(self._file.schema_arrow)
        except pa.ArrowInvalid as error:
            raise Failure(f"{printable(str(path))} is no Parquet file: {printable(str(error))}", 2) from None
        if self._column is None:
            raise Failure(
                f"{printable(str(path))} has no column of pictures: it must be binary, or a struct with the field "
                "`bytes`, and the only one, or be named `image`",
                2,
            )
        self.path = path
        self._rows: Iterator[tuple[int, bytes | None]] = iter(())
        self._last = -1

    def __len__(self) -> int:
        rows: int = self._file.metadata.num_rows
        return rows

    def names(self) -> Iterator[str]:
        """The names of its pictures."""
        return (f"{self.path}[{row}]" for row in range(len(self)))

    def read(self, row: int) -> bytes:
        """The bytes of a picture. Fast if rows are asked for in order.

        Raises:
            InvalidImageError: there is no such row, or it has no bytes.
            OSError: the file cannot be read.
        """
        if not row > self._last or self._last < 0:
            self._rows = self._from(row)
        for found, data in self._rows:
            self._last = found
            if found == row:
                if not data:
                    raise InvalidImageError("the row has no bytes of a picture")
                return data
        self._last = -1
        raise InvalidImageError(f"there is no such row; the file has {len(self)}")

    def _from(self, row: int) -> Iterator[tuple[int, bytes | None]]:
        """The rows from the beginning of the row group that has `row`."""
        first = 0
        for group in range(self._file.num_row_groups):
            size = self._file.metadata.row_group(group).num_rows
            if first + size > row:
                yield from self._of_groups(range(group, self._file.num_row_groups), first)
                return
            first += size

    def _of_groups(self, groups: range, first: int) -> Iterator[tuple[int, bytes | None]]:
        for batch in self._file.iter_batches(_ROWS, list(groups), columns=[self._column]):
            pictures = batch.column(0).to_pylist()
            for picture in pictures:
                yield first, picture.get("bytes") if isinstance(picture, dict) else picture
                first += 1


class PictureInTable:
    """A picture of a table as an open file: it has a name, and is read when it is asked for."""

    def __init__(self, name: str, table: Path, row: int) -> None:
        self.name = name
        self._table, self._row = table, row

    def read(self) -> bytes:
        """See `PictureTable.read`."""
        return _table(self._table).read(self._row)


def open_picture(name: str) -> str | PictureInTable:
    """The picture of a name: the path of a file as it is, or a row of a table."""
    found = _NAME.fullmatch(name)
    if found is None or Path(name).exists():
        return name
    return PictureInTable(name, Path(found[1]), int(found[2]))


def read_picture(name: str) -> bytes:
    """The bytes of the picture of a name, as the service reads them.

    Raises:
        InvalidImageError: it is not a picture, or is damaged, or there is no such row.
        OSError: a file cannot be read.
    """
    opened = open_picture(name)
    if not isinstance(opened, str):
        return opened.read()
    try:
        return read_file(Path(opened))
    except InvalidImageError as error:
        raise InvalidImageError(str(error).removeprefix(f"{opened}: ")) from None


@lru_cache(maxsize=2)
def _table(path: Path) -> PictureTable:
    return PictureTable(path)


def _picture_column(schema: Any) -> str | None:
    """The name of the column of pictures: the only one with bytes, or else one that is named so; None without one."""
    found = [field.name for field in schema if _holds_pictures(field.type)]
    named = [name for name in _COLUMNS if name in found]
    return found[0] if len(found) == 1 else next(iter(named), None)


def _holds_pictures(kind: Any) -> bool:
    """Whether a type is binary, or a struct with a binary field `bytes`."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        field = kind.get_field_index("bytes")
        return field >= 0 and _holds_pictures(kind.field(field).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _pyarrow_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise Failure(
            f"a .parquet file needs {error.name}, which is not installed: pip install 'glowserve[parquet]'", 2
        ) from None
    return pyarrow.parquet
