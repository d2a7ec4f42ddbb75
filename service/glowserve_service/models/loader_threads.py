"""The threads that read the repository and load models, below the priority of those that answer calls.

A thread that hangs is left behind: a network file system may not answer, nor the driver of a GPU, and no thread can be
ended from outside. How many are left behind is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from glowserve_service.errors import UnavailableError
from glowserve_service.models.daemon_threads import call_in_daemon_thread
from glowserve_service.observability.metrics import Metrics

T = TypeVar("T")

# A third of the others' share. A thread that hardly ran would hold the interpreter's lock for long when it has it.
_NICENESS = 5
# Each may hold the memory of a model, and a core.
_MOST_HANGING = 3


class LoadTimeoutError(Exception):
    """A function took longer than it may; its thread is left behind."""


class LoaderThreads:
    """Runs functions beside the event loop, each in a thread of its own.

    Args:
        seconds: how long a function may take; 0 for any time.
        metrics: the service's.
    """

    def __init__(self, seconds: float, metrics: Metrics) -> None:
        self.lower_priority = False
        """Whether the threads run at a lower priority than others. Threads that they start inherit the priority. So it
        must be False for engines with threads of their own: with one instance, or on a GPU."""
        self._seconds = seconds
        self._hanging: set[Future[Any]] = set()
        metrics.hanging_loads.set_function(lambda: len(self._hanging))

    async def run(
        self, function: Callable[..., T], *args: Any, on_late: Callable[[T], object] = lambda _: None
    ) -> T:
        """The function's result.

        Args:
            function: what to call.
            args: its arguments.
            on_late: called with a result that comes after the time was up, in the function's thread.

        Raises:
            LoadTimeoutError: the function took too long.
            UnavailableError: too many functions hang; this one was not called.
        """
        if len(self._hanging) >= _MOST_HANGING:
            raise UnavailableError(
                f"{len(self._hanging)} earlier reads of the repository or loads of models hang; nothing more is read "
                "until one of them ends, or the service is started again"
            )
        future = call_in_daemon_thread(self._with_priority, function, *args)
        try:
            async with asyncio.timeout(self._seconds or None) as limit:
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if not limit.expired():  # it is the function's own
                raise
        self._leave_behind(future, on_late)
        raise LoadTimeoutError(f"it has taken longer than load_timeout_seconds, {self._seconds:g} s")

    def _with_priority(self, function: Callable[..., T], *args: Any) -> T:
        if self.lower_priority and sys.platform == "linux":  # where a thread has a priority of its own
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
        return function(*args)

    def _leave_behind(self, future: Future[T], on_late: Callable[[T], object]) -> None:
        def ended(future: Future[T]) -> None:
            self._hanging.discard(future)
            if not future.exception():
                on_late(future.result())

        self._hanging.add(future)
        future.add_done_callback(ended)
