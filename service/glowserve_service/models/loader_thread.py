"""The thread that reads the repository and loads models, below the priority of those that answer calls."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

# A third of the others' share. A thread that hardly ran would hold the interpreter's lock for long when it has it.
_NICENESS = 5


class LoaderThread:
    """Runs functions beside the event loop: in any thread of its own pool until `settle`, then in one thread."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    def settle(self, *, lower_priority: bool) -> None:
        """Ends the start: from now on functions run one after the other.

        Args:
            lower_priority: whether the thread runs at a lower priority than others. Threads that it starts inherit the
                priority. So it must be False for engines with threads of their own: with one instance, or on a GPU.
        """
        initializer = _lower_priority if lower_priority else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader", initializer=initializer)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """The function's result."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def close(self) -> None:
        """Waits for the function that runs."""
        if self._thread:
            self._thread.shutdown(cancel_futures=True)


def _lower_priority() -> None:
    """Lets this thread run less than others, on Linux, where a thread has a priority of its own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
