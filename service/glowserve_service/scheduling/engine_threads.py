"""Threads that run batches. The one that has become idle most recently is used next.

The system keeps such a thread on the core where it ran last. Threads that are used in turns meet on one core, while
another core is idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy.typing as npt

Array = npt.NDArray[Any]
Rows = tuple[Array, ...]
"""Arrays with the same number of rows, the first axis."""


class Run(NamedTuple):
    """What a function returned, and what it cost."""

    rows: Rows
    own_seconds: float
    """The processor time of its thread. Unlike the time that passed, it does not grow when the machine is busy."""


class EngineThreads:
    """As many threads as there are runs at the same time. For one event loop; they do not keep the process alive."""

    def __init__(self) -> None:
        self._all: list[_Thread] = []
        self._idle: list[_Thread] = []

    async def run(self, function: Callable[..., Rows], rows: Rows) -> Run:
        """Runs a function in a thread. Raises what the function raises."""
        future: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        thread = self._idle.pop() if self._idle else self._start()
        thread.jobs.put((function, rows, future))
        return await future

    def close(self, *, wait: bool) -> None:
        """Ends the threads. Blocks until their runs have ended, unless `wait` is False."""
        for thread in self._all:
            thread.jobs.put(None)
        for thread in self._all if wait else ():
            thread.join()

    def _start(self) -> _Thread:
        thread = _Thread(f"engine_{len(self._all)}", self._idle.append)
        self._all.append(thread)
        thread.start()
        return thread


class _Thread(threading.Thread):
    """Runs jobs, one after the other.

    Args:
        name: the thread's.
        on_idle: called in the event loop when a job has ended, before its result is there.
    """

    def __init__(self, name: str, on_idle: Callable[[_Thread], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.jobs: SimpleQueue[tuple[Callable[..., Rows], Rows, asyncio.Future[Run]] | None] = SimpleQueue()
        """A function, its arguments, and the future of its result; None ends the thread."""
        self._on_idle = on_idle

    def run(self) -> None:
        """See threading.Thread."""
        while job := self.jobs.get():
            self._run(*job)
            del job  # would keep a caller's request in memory until the next job

    def _run(self, function: Callable[..., Rows], rows: Rows, future: asyncio.Future[Run]) -> None:
        began, result, failure = time.thread_time(), None, None
        try:
            result = Run(function(*rows), time.thread_time() - began)
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            future.get_loop().call_soon_threadsafe(self._end, future, result, failure)
        del rows, result, failure  # the traceback of the failure knows this frame

    def _end(self, future: asyncio.Future[Run], result: Run | None, failure: BaseException | None) -> None:
        self._on_idle(self)
        if future.cancelled():
            return
        if failure is not None:
            future.set_exception(failure)
        elif result is not None:
            future.set_result(result)
