"""What scheduling knows of a piece of work: the ticket that it carries through pools and queues."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass


class AdmissionGate:
    """Lets the first work of a call into a queue before the rest: it alone may be refused, and not for the rest."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()

    async def wait(self, *, first: bool) -> None:
        """Returns when work may enter the queue, which it then does without waiting for anything else."""
        if first:
            self._opened.set()  # the rest runs on only once this work waits for something, in the queue
        else:
            await self._opened.wait()


@dataclass(frozen=True, slots=True)
class Ticket:
    """Of one piece of work; immutable."""

    deadline: float = math.inf
    """When the answer is of no more use, on the clock of `time.monotonic`."""

    first: bool = True
    """Whether it is the first work of its call. Later work is never refused: its caller would lose what was done."""

    long: bool = False
    """Whether it is a part of more than a batch, and takes turns as the whole would."""

    gate: AdmissionGate | None = None
    """Of its call, if that has several pieces of work under way at once."""


DEFAULT_TICKET = Ticket()
