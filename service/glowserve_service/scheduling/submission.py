"""The rows that a caller submits, their parts in batches, and the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from glowserve_service.scheduling.ticket import Ticket
from glowserve_service.scheduling.workers import Rows

QUEUE, EXECUTION = "queue", "execution"
"""Stages of a call: waiting for a batch, and running in it."""


class StageTime(NamedTuple):
    """When a part of a call was in a stage, on the clock of `time.monotonic`."""

    stage: str
    began: float
    ended: float


class Answer(NamedTuple):
    """What a caller gets."""

    rows: Rows
    times: Sequence[StageTime]
    """Of every batch that the rows were in: the wait for it, and its run."""


@dataclass(eq=False)
class Submission:
    """A caller's rows."""

    rows: Rows
    size: int
    arrived: float
    ticket: Ticket
    answer: asyncio.Future[Answer]
    taken: int = 0
    """How many rows are in batches; these are the first ones."""
    results: list[tuple[int, Rows]] = field(default_factory=list)
    """Of batches that have run, each with the index of its first row."""
    times: list[StageTime] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        """Rows that are in no batch yet, and that the caller still wants."""
        return 0 if self.answer.done() else self.size - self.taken

    def take(self, most: int) -> Part:
        """The next rows, for a batch that has room for `most`."""
        part = Part(self, self.taken, min(most, self.size - self.taken))
        self.taken += part.size
        return part

    def add(self, first: int, rows: Rows, times: Sequence[StageTime]) -> None:
        """Adds the results of a batch, which begin at row `first`; the last batch completes the answer."""
        if self.answer.done():
            return
        self.results.append((first, rows))
        self.times += times
        if sum(len(rows[0]) for _, rows in self.results) == self.size:
            ordered = sorted(self.results, key=lambda result: result[0])
            self.answer.set_result(Answer(joined([rows for _, rows in ordered]), self.times))

    def fail(self, error: Exception) -> None:
        """Raises the error in the caller, unless it is gone."""
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(frozen=True)
class Part:
    """Rows of a submission that go into one batch."""

    submission: Submission
    first: int
    size: int

    @property
    def rows(self) -> Rows:
        """Them."""
        return tuple(array[self.first : self.first + self.size] for array in self.submission.rows)


def joined(parts: Sequence[Rows], size: int = 0) -> Rows:
    """The rows of all parts in order, and zeros up to a size."""
    missing = size - sum(len(part[0]) for part in parts)
    if missing > 0:
        parts = [*parts, tuple(np.zeros((missing, *array.shape[1:]), array.dtype) for array in parts[0])]
    if len(parts) == 1:
        return parts[0]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
