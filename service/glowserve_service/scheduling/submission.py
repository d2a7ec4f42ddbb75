"""The rows that a caller submits, their parts in batches, and the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from glowserve_service.scheduling.engine_threads import Rows
from glowserve_service.scheduling.ticket import Ticket

QUEUE, EXECUTION = "queue", "execution"
"""Stages of a call: waiting for a batch, and running in it."""


class StageTime(NamedTuple):
    """When a part of a call was in a stage, on the clock of `time.monotonic`."""

    stage: str
    began: float
    ended: float


class Answer(NamedTuple):
    """The results of all rows of a submission."""

    rows: Rows
    times: Sequence[StageTime]
    """For each batch that had some of the rows: the wait for it, and its run."""


@dataclass(eq=False, slots=True)
class Submission:
    """A caller's rows."""

    rows: Rows
    size: int
    arrived: float
    """On the clock of `time.monotonic`."""
    ticket: Ticket
    answer: asyncio.Future[Answer]
    taken: int = 0
    """Rows that are in batches; the first ones of `rows`."""
    results: list[tuple[int, Rows]] = field(default_factory=list)
    """Of the batches that have run, each with the index of its first row."""
    times: list[StageTime] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        """Rows that are in no batch yet; 0 if the caller has its answer, or has cancelled."""
        return 0 if self.answer.done() else self.size - self.taken

    def take(self, room: int) -> Part:
        """The next rows, as many as a batch has room for."""
        part = Part(self, self.taken, min(room, self.size - self.taken))
        self.taken += part.size
        return part

    def drop(self) -> int:
        """Takes the rows that are in no batch out of the submission, which may stay in a queue; returns how many."""
        left = self.size - self.taken
        if not self.taken:
            self.rows = ()
        self.taken = self.size
        return left

    def add(self, first: int, rows: Rows, times: Sequence[StageTime]) -> None:
        """Adds the results of a batch, which begin at row `first`. With the last results the answer is complete."""
        if self.answer.done():
            return
        if len(rows[0]) == self.size:  # as nearly always: all of them were in one batch
            self.answer.set_result(Answer(rows, times))
            return
        self.results.append((first, rows))
        self.times += times
        if sum(len(rows[0]) for _, rows in self.results) == self.size:
            ordered = sorted(self.results, key=lambda result: result[0])
            self.answer.set_result(Answer(joined([rows for _, rows in ordered]), self.times))

    def fail(self, error: Exception) -> None:
        """Raises the error in the caller, unless it has its answer or has cancelled."""
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a submission that go into one batch."""

    submission: Submission
    first: int
    """Index of its first row in the submission."""
    size: int

    @property
    def rows(self) -> Rows:
        """These rows of the submission's arrays."""
        return tuple(array[self.first : self.first + self.size] for array in self.submission.rows)


def joined(parts: Sequence[Rows], size: int = 0) -> Rows:
    """The rows of all parts in order, padded with zeros to `size` rows if they are fewer."""
    missing = size - sum(len(part[0]) for part in parts)
    if missing > 0:
        parts = [*parts, tuple(np.zeros((missing, *array.shape[1:]), array.dtype) for array in parts[0])]
    if len(parts) == 1:
        return parts[0]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
