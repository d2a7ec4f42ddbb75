"""The journal of a run: every row as soon as it is known, in a file beside the one that the run ends with.

A run that was killed goes on from its journal. The first line is a header, each other line one row, both JSON. A line
is complete if it has its line end, so that of a torn write only the last line is lost, and with it no other row.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from glowserve.cli.bulk.rows import Row
from glowserve.cli.failure import Failure
from glowserve.output import printable

# How a header begins.
_HEADER = b'{"model":'


@dataclass(frozen=True)
class Header:
    """What all rows of a file have in common."""

    model: str
    """The model's name."""

    version: int
    """The model's version."""

    columns: list[str]
    """The names of the scores."""

    wanted: dict[str, Any]
    """The other arguments of `Client.iter_scores`, such as the seed: strings, numbers, None and lists of these."""


class Journal:
    """The rows that a run has, and those that an earlier run of the same kind left.

    Args:
        out: the file that the run ends with; the journal is OUT.part.
        header: of this run.

    Raises:
        Failure: the journal is in use, is no journal, or belongs to a run of another kind.
        OSError: it cannot be read or written.
    """

    def __init__(self, out: Path, header: Header) -> None:
        self.path = out.with_name(f"{out.name}.part")
        self.done: set[str] = set()
        """The paths that have a row."""
        self._file = self._open()
        try:
            self._load(header)
        except BaseException:
            self._file.close()
            raise

    def add(self, rows: Iterable[Row]) -> None:
        """Appends rows, without those whose path has one already. They outlast the end of the process."""
        for row in rows:
            if row.path not in self.done:
                self.done.add(row.path)
                self._file.write(_line(row))
        self._file.flush()

    def rows(self) -> Iterator[Row]:
        """All rows, in the order in which they were added."""
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield Row(*json.loads(line))

    def delete(self) -> None:
        """Deletes the journal, once its rows are in the file that the run ends with."""
        self.path.unlink()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _open(self) -> BinaryIO:
        """The file, locked until it is closed, so that no other run writes to it."""
        file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise Failure(
                f"{self._name} is being written by another run; wait for it, or choose another --out", 2
            ) from None
        except OSError:  # this file system has no locks
            pass
        return file

    def _load(self, header: Header) -> None:
        """Reads the paths that are done, and cuts off a line that is not complete."""
        first = self._file.readline()
        found = self._parsed(first)
        if found is None or not self._read_rows():
            self._file.seek(0)
            self._file.write(_line(asdict(header)))
            self._file.truncate()
            self._file.flush()
        elif _line(asdict(found)) != _line(asdict(header)):
            raise Failure(
                f"{self._name} is what is left of a run with {_described(found)}; this one has {_described(header)}. "
                "Go on with the same, or delete it to begin again",
                2,
            )

    def _parsed(self, line: bytes) -> Header | None:
        """The header of the earlier run; None if there was none, or if it ended while it wrote the header."""
        try:
            if line.endswith(b"\n"):
                return Header(**json.loads(line))
        except (ValueError, TypeError):
            raise self._foreign() from None
        if not line.startswith(_HEADER[: len(line)]):
            raise self._foreign()
        return None

    def _read_rows(self) -> bool:
        """Takes note of the rows up to the first line that is not complete. Whether there is any."""
        end = self._file.tell()
        for line in self._file:
            try:
                row = Row(*json.loads(line)) if line.endswith(b"\n") else None
            except (ValueError, TypeError):
                row = None
            if row is None:
                break
            self.done.add(row.path)
            end += len(line)
        self._file.seek(end)
        self._file.truncate()
        return bool(self.done)

    def _foreign(self) -> Failure:
        return Failure(f"{self._name} was not left by a run of this command; choose another --out", 2)

    @property
    def _name(self) -> str:
        return printable(str(self.path))


def _line(content: object) -> bytes:
    """A line of JSON. Names that are not UTF-8 become escapes; infinity is written as Python reads it."""
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def _described(header: Header) -> str:
    wanted = ", ".join(f"{name} {value}" for name, value in header.wanted.items() if name != "scores")
    return printable(
        f"{header.model} version {header.version}, {wanted} and the scores {', '.join(header.columns)}"
    )
