"""The attempts of one call: when a refused call is sent again, and how much of its timeout is left."""

from __future__ import annotations

import random
import time

import grpc

from glowserve.client.errors import RequestError

# Refusals after which the service asks for another attempt; nothing was computed.
_RETRYABLE = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
_SHORTEST_PAUSE_SECONDS = 0.1
# Pauses double up to this; a service that asks for more gets it.
_LONGEST_PAUSE_SECONDS = 10.0
# A deadline beyond this overflows clocks. A longer timeout is no limit.
_NO_LIMIT_SECONDS = 1e9


class Attempts:
    """Counts the attempts of a call, whose pauses and work share one timeout.

    Pauses are at least as long as the service asks for. They double, and are up to half longer at random, so that the
    clients that were refused together do not come back together.

    Args:
        timeout: how many seconds all attempts may take together; infinity for no limit.
    """

    def __init__(self, timeout: float) -> None:
        self._end = time.monotonic() + timeout
        self._refusals = 0

    @property
    def seconds_left(self) -> float | None:
        """How long the next attempt may take; None for no limit."""
        return limit(self._end - time.monotonic())

    def pause(self, refusal: RequestError, *, restarting: bool = False) -> float:
        """How many seconds to wait before the next attempt.

        Args:
            refusal: the error of the last attempt.
            restarting: whether an unavailable service is known to have been there, and may come back.

        Raises:
            RequestError: the refusal, if another attempt would not help, or not in time.
        """
        least = refusal.retry_after
        if least is None and restarting and refusal.code is grpc.StatusCode.UNAVAILABLE:
            least = 0.0
        if least is None or refusal.code not in _RETRYABLE:
            raise refusal
        least = max(least, _SHORTEST_PAUSE_SECONDS)
        doubled = min(least * 2.0 ** min(self._refusals, 10), max(least, _LONGEST_PAUSE_SECONDS))
        pause = doubled * random.uniform(1.0, 1.5)
        if time.monotonic() + pause >= self._end:
            raise refusal
        self._refusals += 1
        return pause


def limit(seconds: float) -> float | None:
    """A number of seconds as gRPC and asyncio take it: None for no limit."""
    return seconds if seconds < _NO_LIMIT_SECONDS else None
