"""Waits for a condition; a test fails if it does not hold in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_POLL_SECONDS = 0.02


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Returns once the condition holds.

    Args:
        condition: called again and again.
        what: the condition in words, such as "no call is in flight".
        seconds: how long it may take.

    Raises:
        AssertionError: it took longer; the message is `what`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds:g} s it is still not true that {what}"
        time.sleep(_POLL_SECONDS)


async def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """As `wait_until`, beside the event loop: the condition may block, and is called in a thread."""
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"after {seconds:g} s it is still not true that {what}"
        await asyncio.sleep(_POLL_SECONDS)
