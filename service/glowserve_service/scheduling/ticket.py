"""A ticket: what pools and queues know about a piece of work."""

from __future__ import annotations

import asyncio
import math
from typing import NamedTuple


class AdmissionGate:
    """Holds back a call's later work until its first work is in the queue.

    The queue may refuse the first work only. Without the gate, later work that is ready sooner could fill the queue,
    and the first work of the same call would be refused.
    """

    def __init__(self) -> None:
        self._opened = asyncio.Event()

    def open(self) -> None:
        """Lets later work in. Called when the first work is in the queue; never if it is refused."""
        self._opened.set()

    async def wait(self) -> None:
        """Returns when later work may enter the queue."""
        await self._opened.wait()


class Ticket(NamedTuple):
    """Belongs to one piece of work; immutable."""

    deadline: float = math.inf
    """When the caller stops waiting, on the clock of `time.monotonic`."""

    first: bool = True
    """Whether it is the first work of its call. Later work is never refused: the work before it would be lost."""

    long: bool = False
    """Whether it is a part of a stream, or of a call that is larger than a batch. Long work, however small its parts,
    takes turns with other long work."""

    gate: AdmissionGate | None = None
    """Shared by the work of a call that has several pieces under way at once; None for other calls."""

    @property
    def later(self) -> Ticket:
        """The ticket of work that follows in the same call."""
        return Ticket(self.deadline, False, self.long, self.gate) if self.first else self


DEFAULT_TICKET = Ticket()
