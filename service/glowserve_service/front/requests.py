"""The requests of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from glowserve_service.front.call import Call


class Requests:
    """Yields a stream's requests, as bytes, until it ends or the server stops.

    Args:
        context: gRPC's.
        stopping: set when the server stops.
        call: whose requests they are. While there is no room for more of them, none is read.
    """

    def __init__(self, context: Any, stopping: asyncio.Event, call: Call) -> None:
        self._context = context
        self._stopping = stopping
        self._call = call
        self.cut_short = False
        """Whether the server stopped before the caller had ended the stream."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        stopping = asyncio.create_task(self._stopping.wait())
        arrival = asyncio.ensure_future(self._next())
        try:
            while True:
                await asyncio.wait({arrival, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not arrival.done():
                    self.cut_short = True
                    return
                if (request := arrival.result()) is grpc.aio.EOF:
                    return
                yield request
                arrival = asyncio.ensure_future(self._next())
        finally:
            arrival.cancel()
            stopping.cancel()

    async def _next(self) -> Any:
        await self._call.holding.room()
        return await self._context.read() if self._call.is_open else grpc.aio.EOF
