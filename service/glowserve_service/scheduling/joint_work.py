"""The same work for several callers in one step: NumPy takes as long for the rows of one as for those of thirty."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from glowserve_service.scheduling.cpu_pool import CpuPool
from glowserve_service.scheduling.engine_threads import Array, Rows
from glowserve_service.scheduling.submission import joined
from glowserve_service.scheduling.ticket import Ticket

# The callers have waited for a batch: what was done would be lost if the pool refused the rest.
_TICKET = Ticket(first=False)


class _Waiting(NamedTuple):
    """The rows of one caller."""

    rows: Callable[[], Rows]
    images: int
    size: int
    answer: asyncio.Future[Array]


class JointWork:
    """A function, and the callers that wait for its results.

    The answers of one batch wake its callers up in the same turn of the event loop. In the next turn the function is
    called for all of them.

    Args:
        function: from arrays of N rows to one of N rows; row i of the result depends on row i alone.
        most: how many images it is called for at once, unless a caller has more.
    """

    def __init__(self, function: Callable[..., Array], most: int) -> None:
        self._function, self._most = function, most
        self._waiting: list[_Waiting] = []
        self._running: set[asyncio.Task[None]] = set()

    async def run(self, rows: Callable[[], Rows], *, images: int, size: int, pool: CpuPool) -> Array:
        """The function's result for a caller's rows.

        Args:
            rows: returns the rows; called in a thread of the pool, or on the event loop.
            images: how many there are.
            size: about how many bytes the function reads or writes.
            pool: where it is called.
        """
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._begin, pool)
        self._waiting.append(_Waiting(rows, images, size, loop.create_future()))
        return await self._waiting[-1].answer

    def _begin(self, pool: CpuPool) -> None:
        waiting, self._waiting = self._waiting, []
        while waiting:
            count, images = 1, waiting[0].images
            while count < len(waiting) and images + waiting[count].images <= self._most:
                images += waiting[count].images
                count += 1
            task = asyncio.create_task(self._answer(waiting[:count], pool))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            waiting = waiting[count:]

    async def _answer(self, callers: Sequence[_Waiting], pool: CpuPool) -> None:
        def work() -> Array:
            return self._function(*joined([each.rows() for each in callers]))

        images, size = sum(each.images for each in callers), sum(each.size for each in callers)
        try:
            result = await pool.run(work, _TICKET, images=images, size=size)
        except Exception as error:
            for each in callers:
                if not each.answer.done():
                    each.answer.set_exception(error)
            return
        parts = np.split(result, np.cumsum([each.images for each in callers[:-1]]))
        for each, part in zip(callers, parts, strict=True):
            if not each.answer.done():  # the caller has cancelled
                each.answer.set_result(part)
