"""Log records of the service."""

from __future__ import annotations

import logging

import pytest


def records_of(
    caplog: pytest.LogCaptureFixture, logger: str = "glowserve_service"
) -> list[logging.LogRecord]:
    """The records of a logger and of those below it.

    With several event loops in a process, asyncio logs errors of gRPC's poller now and then: BlockingIOError. A service
    has one event loop.
    """
    return [record for record in caplog.records if f"{record.name}.".startswith(f"{logger}.")]
