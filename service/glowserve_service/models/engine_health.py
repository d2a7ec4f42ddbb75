"""Whether the engine of a served model works, as its batches and its canary show."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from glowserve_service.scheduling.engine_threads import Rows

log = logging.getLogger(__name__)


class EngineHealth:
    """The last known state of one engine. For the event loop's thread alone, but for `watched` and `timed`.

    Args:
        name: the model's and its version, for the log.
        on_change: called when `failure` has changed.
    """

    def __init__(self, name: str, on_change: Callable[[], None]) -> None:
        self.failure = ""
        """A sentence; empty while the engine works."""
        self._name = name
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._began: dict[object, float] = {}

    def watched(self, function: Callable[..., Rows]) -> Callable[..., Rows]:
        """The function, which runs the engine in a thread; an exception that it raises is a failure of the engine."""
        timed = self.timed(function)

        def watched(*rows: Any, **options: bool) -> Rows:
            try:
                return timed(*rows, **options)
            except Exception:
                self._loop.call_soon_threadsafe(
                    self.set, "its engine failed in a batch; the error is in the server's log"
                )
                raise

        return watched

    def timed(self, function: Callable[..., Rows]) -> Callable[..., Rows]:
        """The function, which runs the engine in a thread; `batch_seconds` knows for how long."""

        def timed(*rows: Any, **options: bool) -> Rows:
            batch = object()
            self._began[batch] = time.monotonic()
            try:
                return function(*rows, **options)
            finally:
                del self._began[batch]

        return timed

    @property
    def batch_seconds(self) -> float:
        """For how long the oldest of the batches that run has done so; 0 if none runs."""
        now = time.monotonic()
        return now - min(list(self._began.values()), default=now)

    def set(self, failure: str) -> None:
        """Changes the state: to failing with a sentence, to working with an empty one."""
        if failure == self.failure:
            return
        self.failure = failure
        if failure:
            log.error("%s is not ready: %s", self._name, failure)
        else:
            log.info("%s is ready again: its canary passes", self._name)
        self._on_change()
