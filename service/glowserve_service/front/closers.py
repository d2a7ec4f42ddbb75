"""What is closed when a process of the service ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from glowserve_service.models.daemon_threads import call_in_daemon_thread

# Threads that decode pictures, the metrics' server, and the exporter of traces.
_SECONDS = 2.0

log = logging.getLogger(__name__)


class Closers:
    """Functions that close parts of the service, each of which may block."""

    def __init__(self) -> None:
        self._functions: list[Callable[[], Any]] = []

    def add(self, close: Callable[[], Any]) -> None:
        """Adds a function, which is called before those that were added earlier."""
        self._functions.append(close)

    async def close(self) -> None:
        """Calls all of them in a thread; leaves behind what takes more than two seconds."""
        closing = asyncio.wrap_future(call_in_daemon_thread(self._close_all))
        if not (await asyncio.wait({closing}, timeout=_SECONDS))[0]:
            log.error("the rest of the service has not stopped in %g s: it is left behind", _SECONDS)

    def _close_all(self) -> None:
        for close in reversed(self._functions):
            try:
                close()
            except Exception:
                log.exception("a part of the service cannot be closed")
