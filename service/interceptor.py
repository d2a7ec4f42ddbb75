"""The edge: every call is counted and timed, and every error becomes a status."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError

from service.errors import InvalidRequestError, ServiceError, UnavailableError
from service.metrics import Metrics
from service.status import status_of

log = logging.getLogger(__name__)

INTERNAL_ERROR = "internal error; it is in the server's log"


class Edge(grpc.aio.ServerInterceptor):
    """Wraps the methods of our gRPC services.

    Args:
        services: their full names.
        metrics: where calls are counted.
        always: methods that are let in even before `accept` and after `refuse`.
    """

    def __init__(self, services: Collection[str], metrics: Metrics, always: Collection[str] = ()) -> None:
        self._services = services
        self._metrics = metrics
        self._always = always
        self._stopping = asyncio.Event()
        self._refusal = "the server is starting; try again"
        self._in_flight = 0

    @property
    def accepts(self) -> bool:
        """Whether calls are let in."""
        return not self._refusal

    def accept(self) -> None:
        """Lets calls in; until then they are answered UNAVAILABLE."""
        self._refusal = ""

    def refuse(self) -> None:
        """Answers UNAVAILABLE to every call from now on; those that have begun go on, without further requests."""
        self._refusal = "the server is stopping; try another"
        self._stopping.set()

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
        service, _, method = handler_call_details.method.removeprefix("/").rpartition("/")
        if handler is None or service not in self._services:
            return None if handler is None else cast("grpc.RpcMethodHandler[Any, Any]", handler)

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

        async def both(_: Any, context: Any) -> AsyncIterator[Any]:
            cut_short = False

            async def requests() -> AsyncIterator[Any]:
                nonlocal cut_short
                stopping = asyncio.create_task(self._stopping.wait())
                arrival = asyncio.ensure_future(context.read())
                try:
                    while True:
                        await asyncio.wait({arrival, stopping}, return_when=asyncio.FIRST_COMPLETED)
                        if not arrival.done():
                            cut_short = True
                            return
                        if (request := arrival.result()) is grpc.aio.EOF:
                            return
                        yield read(request)
                        arrival = asyncio.ensure_future(context.read())
                finally:
                    arrival.cancel()
                    stopping.cancel()

            async with self._call(method, context):
                async for response in handler.stream_stream(requests(), context):
                    yield response
                if cut_short:
                    raise UnavailableError(self._refusal)

        # gRPC would answer UNKNOWN to bytes that are no message, and nobody would count the call.
        coders = {"request_deserializer": None, "response_serializer": handler.response_serializer}
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(both, **coders)
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
            if self._refusal and method not in self._always:
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
            await context.abort(code, INTERNAL_ERROR)
        finally:
            self._in_flight -= 1
            self._metrics.requests_in_flight.dec()
            self._metrics.requests.labels(method, code.name).inc()
            self._metrics.request_seconds.labels(method).observe(time.monotonic() - began)
