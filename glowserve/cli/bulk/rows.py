"""The rows of a file of scores: one for each picture, with its scores or with the reason why it has none."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from glowserve.cli.pictures import explanation
from glowserve.output import printable
from glowserve.results import ScoredImages

Value = float | bool | list[float] | None
"""A score of one picture; a list if it has a value for each level."""


class Row(NamedTuple):
    """One picture."""

    path: str
    """Its path, as the operating system takes it."""

    values: list[Value] | None
    """Its scores, in the order of the columns. A score is None if it was not computed. None if there is an error."""

    error: str | None
    """Why it has no scores, on one line."""


def rows_of(
    scored: ScoredImages, columns: Sequence[str], paths: Sequence[str] | None = None
) -> Iterator[Row]:
    """The rows of some pictures, in the order in which they were read.

    Args:
        scored: their scores and errors.
        columns: the names of the scores of a row.
        paths: what to call the pictures, by their index; by default, their names.
    """
    found: list[tuple[int, Row]] = [
        (error.index, Row(error.name, None, printable(explanation(error)))) for error in scored.errors
    ]
    arrays: list[Any] = [getattr(scored, name) for name in columns]
    lists = [[None] * len(scored) if array is None else array.tolist() for array in arrays]
    values = zip(scored.indices, scored.names, *lists, strict=True)
    found += [(index, Row(name, row, None)) for index, name, *row in values]
    found.sort(key=lambda each: each[0])
    return (row._replace(path=paths[i]) if paths else row for i, row in found)


def as_text(path: str) -> str:
    r"""The path as valid Unicode: bytes of its name that are not UTF-8 become escapes, such as \xe9."""
    return os.fsencode(path).decode(errors="backslashreplace")
