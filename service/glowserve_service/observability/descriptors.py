"""File descriptors: how many this process may open, how many connections it admits, and whether descriptors run short.

A connection takes one. A service that had none left could not load a model, read a renewed certificate or answer a
scrape, so it keeps some for itself and refuses connections instead.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
from contextlib import suppress
from pathlib import Path

FEW = 1024
"""With fewer descriptors than this, connections without a call are closed after seconds."""

# What is kept for graphs, a model that is being loaded, the log, the metrics port and its threads.
_MOST_KEPT = 256
_REMEDY = "raise the limit of open files (ulimit -n, LimitNOFILE= of systemd, --ulimit nofile= of docker)"
_INTERVAL_SECONDS = 5.0

log = logging.getLogger(__name__)


def raise_limit() -> None:
    """Raises the soft limit of open files to the hard one. The soft one is low for programs that call select()."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(OSError, ValueError):  # macOS may say "unlimited", and then refuse that
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def limit() -> int:
    """How many descriptors this process may have."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2**20 if soft == resource.RLIM_INFINITY else soft


def most_connections(wanted: int) -> int:
    """How many connections to the port of gRPC may be admitted, if so many are wanted."""
    return min(wanted, max(1, limit() - min(limit() // 2, _MOST_KEPT)))


def warning(connections: int) -> str | None:
    """A sentence with the remedy if this process may have few descriptors, and so admits few connections; else None."""
    if limit() >= FEW:
        return None
    return f"this process may open only {limit()} files and admits {connections} connections; {_REMEDY}"


class DescriptorWatch:
    """Watches for connections that take as many descriptors as they may: then gRPC closes further ones.

    Args:
        connections: how many are admitted.
    """

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._own = _count_open()

    def are_short(self) -> bool:
        """Whether connections may be refused. False where /dev/fd does not tell."""
        return _count_open() - self._own >= self._connections

    async def run(self) -> None:
        """Logs when descriptors become short, and when that is over; until it is cancelled."""
        before = False
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            if (short := await asyncio.to_thread(self.are_short)) == before:
                continue
            before = short
            if short:
                log.warning(
                    "file descriptors are short, and connections may be refused: %d are admitted; raise "
                    "--max-connections, or if that is higher already, %s",
                    self._connections,
                    _REMEDY,
                )
            else:
                log.info("file descriptors are no longer short")


def _count_open() -> int:
    try:
        return sum(1 for _ in Path("/dev/fd").iterdir())
    except OSError as error:
        return limit() if error.errno in (errno.EMFILE, errno.ENFILE) else 0
