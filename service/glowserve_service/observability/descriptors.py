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
_REMEDY = "raise the limit (ulimit -n, LimitNOFILE= of systemd, --ulimit nofile= of docker)"
_INTERVAL_SECONDS = 5.0
_NONE_LEFT = (errno.EMFILE, errno.ENFILE)

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


def most_connections() -> int:
    """How many of them connections to the port of gRPC may take."""
    return max(1, limit() - min(limit() // 2, _MOST_KEPT))


def warning() -> str | None:
    """A sentence with the remedy if this process may have few descriptors; else None."""
    if limit() >= FEW:
        return None
    return (
        f"this process may open only {limit()} files and admits {most_connections()} connections; {_REMEDY}"
    )


def are_short() -> bool:
    """Whether so many descriptors are in use that connections may be refused. False where /dev/fd does not tell."""
    try:
        return sum(1 for _ in Path("/dev/fd").iterdir()) >= most_connections()
    except OSError as error:
        return error.errno in _NONE_LEFT


async def watch() -> None:
    """Logs when descriptors become short, and when that is over; until it is cancelled."""
    before = False
    while True:
        await asyncio.sleep(_INTERVAL_SECONDS)
        if (short := await asyncio.to_thread(are_short)) == before:
            continue
        before = short
        if short:
            log.warning(
                "file descriptors are short, and connections may be refused: up to %d of %d are for those; %s",
                most_connections(),
                limit(),
                _REMEDY,
            )
        else:
            log.info("file descriptors are no longer short")
