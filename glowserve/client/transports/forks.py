"""Whether gRPC can be used after a fork.

A child of `os.fork`, and so a worker of multiprocessing's "fork", may call a service: gRPC prepares itself for the
fork. It cannot if another thread is using it at that moment, as a call does and as grpc.aio does while there is a
channel. Calls in the child would then hang beyond their timeout, or crash; they raise instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakSet


class HasLoopChannels(Protocol):
    """A transport with channels for event loops."""

    def free(self) -> None:
        """Frees the channels of loops that have ended."""


class _Process:
    """The calls and channels that a fork would cut off. Without a lock, which a fork could copy while it is held."""

    def __init__(self) -> None:
        self._calls: set[object] = set()
        self._loop_channels: WeakSet[object] = WeakSet()
        self._transports: WeakSet[HasLoopChannels] = WeakSet()
        self._cut_off = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._before_fork, after_in_child=self._after_fork)

    def add_transport(self, transport: HasLoopChannels) -> None:
        """Lets a transport free channels before a fork, as long as it exists."""
        self._transports.add(transport)

    def add_loop_channel(self, channel: object) -> None:
        """Counts a channel for an event loop, as long as it exists."""
        self._loop_channels.add(channel)

    @contextmanager
    def call(self) -> Iterator[None]:
        """The context of every call.

        Raises:
            RuntimeError: this process was forked while a call was under way, or a channel for an event loop existed.
        """
        if self._cut_off:
            raise RuntimeError(
                "this process was forked while a call was under way or an AsyncClient was connected, which gRPC does "
                "not survive; close the AsyncClient before the fork, start worker processes before the first call, or "
                "start them with multiprocessing.get_context('spawn')"
            )
        call, calls = object(), self._calls
        calls.add(call)
        try:
            yield
        finally:
            calls.discard(call)

    def _before_fork(self) -> None:
        for transport in list(self._transports):
            transport.free()

    def _after_fork(self) -> None:
        self._cut_off = self._cut_off or bool(self._calls) or bool(self._loop_channels)
        self._calls, self._loop_channels = set(), WeakSet()


PROCESS = _Process()
"""This process."""
