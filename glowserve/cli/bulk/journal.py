"""The journal of a run: every row as soon as it is known, in a file beside the one that the run ends with.

A run that was killed goes on from its journal. The first line is a header, each other line one row, both JSON. A line
is complete if it has its line end, so that of a torn write only the last line is lost, and with it no other row.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from glowserve.cli.bulk.rows import Row
from glowserve.cli.failure import Failure
from glowserve.output import printable


@dataclass(frozen=True)
class Header:
    """What all rows of a file have in common."""

    model: str
    """The model's name."""

    version: int
    """The model's version."""

    seed: int
    """The seed of the dequantization noise."""

    columns: tuple[str, ...]
    """The names of the scores."""


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
        if not first.endswith(b"\n"):  # empty, or killed at its first line
            if first and not _line(asdict(header)).startswith(first):
                raise self._foreign()
            self._file.seek(0)
            self._file.truncate()
            self._file.write(_line(asdict(header)))
            self._file.flush()
            return
        self._check_header(first, header)
        end = len(first)
        for line in self._file:
            with suppress(ValueError, TypeError):
                row = Row(*json.loads(line)) if line.endswith(b"\n") else None
                if row is not None:
                    self.done.add(row.path)
                    end += len(line)
                    continue
            break
        self._file.seek(end)
        self._file.truncate()

    def _check_header(self, line: bytes, header: Header) -> None:
        try:
            fields = json.loads(line)
            found = Header(**fields | {"columns": tuple(fields["columns"])})
        except (ValueError, TypeError, KeyError):
            raise self._foreign() from None
        if found != header:
            raise Failure(
                f"{self._name} is what is left of a run with {_described(found)}; this one has {_described(header)}. "
                "Go on with the same, or delete it to begin anew",
                2,
            )

    def _foreign(self) -> Failure:
        return Failure(f"{self._name} was not left by a run of this command; choose another --out", 2)

    @property
    def _name(self) -> str:
        return printable(str(self.path))


def _line(content: object) -> bytes:
    """A line of JSON. Names that are not UTF-8 become escapes; infinity is written as Python reads it."""
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def _described(header: Header) -> str:
    scores = ", ".join(header.columns)
    return printable(f"{header.model} version {header.version}, seed {header.seed} and the scores {scores}")
