"""Health and reflection: their calls are not counted or logged, and what they take is bounded.

gRPC itself would answer UNKNOWN to bytes that are no message, and log a traceback.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from glowserve.runtime.errors import GlowserveError, InvalidRequestError
from glowserve_service.errors import CallsExhaustedError
from glowserve_service.front.received import ReceivedBytes, free_frames
from glowserve_service.front.status import status_of, trailing_metadata

# They ask by a name.
_LONGEST_MESSAGE = 4096


class OtherServices:
    """Wraps the methods of these services.

    Args:
        received: receives the messages; they are too short to count.
        max_streams: how many watches and reflections may be open.
    """

    def __init__(self, received: ReceivedBytes, max_streams: int) -> None:
        self._received = received
        self._max_streams = max_streams
        self._streams = 0

    def wrapped(self, handler: Any, method: str) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler that refuses what is no message, too long, or one stream too many."""

        def read(request: bytes) -> Any:
            if len(request) > _LONGEST_MESSAGE:
                raise InvalidRequestError(
                    f"the message has {len(request)} bytes; {method} takes at most {_LONGEST_MESSAGE}"
                )
            try:
                return handler.request_deserializer(request) if handler.request_deserializer else request
            except DecodeError as error:
                raise InvalidRequestError(no_message(method, error)) from error

        async def unary(_: Any, context: Any) -> Any:
            async with _refusals(context):
                request = read(await self._received.receive(context))
            return await handler.unary_unary(request, context)

        async def stream(_: Any, context: Any) -> AsyncIterator[Any]:
            async with _refusals(context), self._stream():
                request = read(await self._received.receive(context))
                async for response in handler.unary_stream(request, context):
                    yield response

        async def both(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
            async with _refusals(context), self._stream():
                messages = (read(request) async for request in requests)
                async for response in handler.stream_stream(messages, context):
                    yield response

        write = handler.response_serializer
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(both, response_serializer=write)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, response_serializer=write)
        return grpc.stream_unary_rpc_method_handler(unary, response_serializer=write)

    @asynccontextmanager
    async def _stream(self) -> AsyncIterator[None]:
        if self._streams >= self._max_streams:
            raise CallsExhaustedError(
                f"{self._streams} watches and reflections are open, as many as are accepted"
            )
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1


def no_message(method: str, error: DecodeError) -> str:
    """The sentence about bytes that are no message."""
    return f"the message is not one that {method} takes: {error}"


@asynccontextmanager
async def _refusals(context: Any) -> AsyncIterator[None]:
    try:
        yield
    except GlowserveError as error:
        free_frames(error)
        await context.abort(status_of(error), str(error), trailing_metadata(error, str(error)))
