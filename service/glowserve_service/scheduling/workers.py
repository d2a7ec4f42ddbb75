"""The threads that run batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
Rows = tuple[Array, ...]
"""Arrays with the same number of rows, the first axis."""


class Workers:
    """Threads that run batches, shared by all batchers of a service.

    Args:
        instances: how many batches run at the same time.
    """

    def __init__(self, instances: int) -> None:
        self.instances = instances
        self.free = asyncio.Semaphore(instances)
        """One permit for each thread that runs nothing."""
        self._pool = ThreadPoolExecutor(instances, thread_name_prefix="engine")

    async def run(self, function: Callable[..., Rows], rows: Rows) -> Rows:
        """Runs a function in a thread. The caller holds a permit of `free`."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*rows))

    def close(self, *, wait: bool = True) -> None:
        """Takes no more batches. Blocks until those that run have ended, unless `wait` is False."""
        self._pool.shutdown(wait=wait)
