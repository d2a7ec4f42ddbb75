"""The edge: every call is counted and timed, and every error becomes a status."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError

from service.errors import InvalidRequestError, ServiceError, UnavailableError
from service.metrics import Metrics
from service.status import status_of

log = logging.getLogger(__name__)


class Edge(grpc.aio.ServerInterceptor):
    """Wraps the methods of one gRPC service.

    Args:
        service: its full name.
        metrics: where calls are counted.
    """

    def __init__(self, service: str, metrics: Metrics) -> None:
        self._prefix = f"/{service}/"
        self._metrics = metrics
        self._refusal = "the server is starting; try again"
        self._in_flight = 0

    def accept(self) -> None:
        """Lets calls in; until then they are answered UNAVAILABLE."""
        self._refusal = ""

    def refuse(self) -> None:
        """Answers UNAVAILABLE to every call from now on; those that have begun go on."""
        self._refusal = "the server is stopping; try another"

    async def idle(self) -> None:
        """Until no call is under way."""
        while self._in_flight:
            await asyncio.sleep(0.01)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Puts the wrapped handler in the place of the method's own."""
        handler: Any = await continuation(handler_call_details)
        path = handler_call_details.method
        if handler is None or not path.startswith(self._prefix):
            return None if handler is None else cast("grpc.RpcMethodHandler[Any, Any]", handler)
        method = path.removeprefix(self._prefix)

        def read(request: bytes) -> Any:
            try:
                return handler.request_deserializer(request)
            except DecodeError as error:
                raise InvalidRequestError(f"the message is not one that {method} takes: {error}") from error

        async def unary(request: bytes, context: Any) -> Any:
            async with self._call(method, context):
                return await handler.unary_unary(read(request), context)

        async def stream(request: bytes, context: Any) -> AsyncIterator[Any]:
            async with self._call(method, context):
                async for response in handler.unary_stream(read(request), context):
                    yield response

        # gRPC would answer UNKNOWN to bytes that are no message, and nobody would count the call.
        coders = {"request_deserializer": None, "response_serializer": handler.response_serializer}
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, **coders)
        return grpc.unary_unary_rpc_method_handler(unary, **coders)

    @asynccontextmanager
    async def _call(self, method: str, context: Any) -> AsyncIterator[None]:
        began = time.monotonic()
        code = grpc.StatusCode.OK
        self._metrics.requests_in_flight.inc()
        self._in_flight += 1
        try:
            if self._refusal:
                raise UnavailableError(self._refusal)
            yield
        except ServiceError as error:
            code = status_of(error)
            await context.abort(code, str(error))
        except (asyncio.CancelledError, GeneratorExit):
            left = context.time_remaining()
            # gRPC rounds a deadline up by as much as a hundredth to send it: the caller ends the call before.
            late = left is not None and left <= 0.02 * (left + time.monotonic() - began)
            code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            raise
        except Exception:
            code = grpc.StatusCode.INTERNAL
            log.exception("%s failed", method)
            await context.abort(code, "internal error; it is in the server's log")
        finally:
            self._in_flight -= 1
            self._metrics.requests_in_flight.dec()
            self._metrics.requests.labels(method, code.name).inc()
            self._metrics.request_seconds.labels(method).observe(time.monotonic() - began)
