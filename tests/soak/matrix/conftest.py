"""Fixtures of the matrix: memory is traced, and pytest's log capture keeps no references."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def only_the_server_holds_memory() -> Iterator[None]:
    """Traces memory, and silences the log.

    pytest keeps log records, and with an exception all objects that its frames refer to. gRPC raises BlockingIOError in
    the event loops of two servers in one process, and asyncio logs it.
    """
    loggers = [logging.getLogger(name) for name in ("glowserve_service", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    tracemalloc.start(1)
    yield
    tracemalloc.stop()
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
