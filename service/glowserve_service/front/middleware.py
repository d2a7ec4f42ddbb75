"""The edge: every call has an id, is counted, timed, logged and traced, and every error becomes a status.

It stands between gRPC and the services, which are added to it as to a server. An interceptor would be one more
coroutine for each call.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError

from glowserve.runtime.errors import GlowserveError, InvalidRequestError
from glowserve_service.errors import UnavailableError
from glowserve_service.front import call as calls
from glowserve_service.front.call import PREPARATION, SERIALIZATION, Call
from glowserve_service.front.status import status_of, trailing_metadata
from glowserve_service.observability.metrics import Metrics
from glowserve_service.observability.traces import Traces
from glowserve_service.security.security import Tokens, refusal

log = logging.getLogger(__name__)

INTERNAL_ERROR = "internal error; it is in the server's log"
REQUEST_ID = "x-request-id"
"""The metadata in which a caller may send an id of its own, and is told the one that is in the log."""

# Bytes. It is in the metadata three times, escaped or in base64, and clients take 8 KiB of those.
_LONGEST_MESSAGE = 1280


class Edge(grpc.GenericRpcHandler):
    """Wraps the methods of the gRPC services that are added to it, and is itself added to a server.

    Args:
        services: the full names of ours; of others it wraps no more than the messages.
        metrics: where calls are counted.
        always: methods that are let in even before `accept` and after `refuse`.
        traces: where calls are traced.
    """

    def __init__(
        self,
        services: Collection[str],
        metrics: Metrics,
        always: Collection[str] = (),
        traces: Traces | None = None,
    ) -> None:
        self._services = services
        self._metrics = metrics
        metrics.ready.set_function(lambda: float(self.accepts))
        metrics.requests_in_flight.set_function(lambda: float(self._unended))
        self._always = always
        self._traces = traces
        self._services_added: list[Any] = []
        # Made once, as each call needs them.
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._requests = functools.cache(metrics.requests.labels)
        self._request_seconds = functools.cache(metrics.request_seconds.labels)
        self._stages = {
            PREPARATION: functools.cache(metrics.preparation_seconds.labels),
            SERIALIZATION: functools.cache(metrics.serialization_seconds.labels),
        }
        self._stopping = asyncio.Event()
        self._refusal = "the server is starting; try again"
        self._in_flight = 0
        # Of those, the ones whose end is not counted yet, which is before their callers hear of it.
        self._unended = 0
        self.arrived = 0
        """Calls that were handed to us."""
        self.tokens: Tokens | None = None
        """What a caller must show one of; None: whoever calls is let in."""

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

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Adds services, as a server does."""
        self._services_added += handlers

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """For the generated code; they are among the generic ones."""

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The wrapped handler of a method; None if no service has it."""
        path = handler_call_details.method
        if path not in self._handlers:
            found = (each.service(handler_call_details) for each in self._services_added)
            if (handler := next(filter(None, found), None)) is None:
                return None
            self._handlers[path] = self._wrapped(*_names(path), handler)
        if refused := refusal(self.tokens, handler_call_details):
            return self._refusing(*_names(path), refused)
        return self._handlers[path]

    def _wrapped(self, service: str, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        if service not in self._services:
            return _of_another_service(handler, method)

        def read(request: bytes) -> Any:
            began = time.monotonic()
            try:
                return handler.request_deserializer(request)
            except DecodeError as error:
                raise InvalidRequestError(_no_message(method, error)) from error
            finally:
                calls.current().spent(PREPARATION, time.monotonic() - began)

        def write(response: Any) -> bytes:
            began = time.monotonic()
            try:
                return cast("bytes", handler.response_serializer(response))
            finally:
                calls.current().spent(SERIALIZATION, time.monotonic() - began)

        async def unary(request: bytes, context: Any) -> bytes:
            async with self._call(service, method, context):
                return write(await handler.unary_unary(read(request), context))

        async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
            async with self._call(service, method, context):
                async for response in handler.unary_stream(read(request), context):
                    yield write(response)

        async def both(_: Any, context: Any) -> AsyncIterator[bytes]:
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

            async with self._call(service, method, context):
                async for response in handler.stream_stream(requests(), context):
                    yield write(response)
                if cut_short:
                    raise UnavailableError(self._refusal)

        # Bytes come and go: gRPC would answer UNKNOWN to those that are no message, and nobody would count the call.
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(both)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)

    def _refusing(
        self, service: str, method: str, refused: GlowserveError
    ) -> grpc.RpcMethodHandler[Any, Any]:
        async def refuse(_: Any, context: Any) -> AsyncIterator[bytes]:
            async with self._call(service, method, context):
                raise refused
            yield b""

        # As a stream, whatever it was: so its requests, which may be large, are not received.
        return grpc.stream_stream_rpc_method_handler(refuse)

    @asynccontextmanager
    async def _call(self, service: str, method: str, context: Any) -> AsyncIterator[None]:
        began = time.monotonic()
        call = self._begin(service, method, context)

        def end(code: grpc.StatusCode, message: str = "") -> None:
            self._end(call, code, time.monotonic() - began, context.peer(), message)

        self._in_flight += 1
        self.arrived += 1
        try:
            if self._refusal and method not in self._always:
                raise UnavailableError(self._refusal)
            yield
        except GlowserveError as error:
            end(status_of(error), str(error))
            await _abort(context, error, str(error))
        except (asyncio.CancelledError, GeneratorExit):
            left = context.time_remaining()
            # gRPC rounds a deadline up by as much as a hundredth to send it: the caller ends the call before.
            late = left is not None and left <= 0.02 * (left + time.monotonic() - began)
            end(grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED)
            raise
        except Exception as error:
            log.exception("%s failed", method)
            end(grpc.StatusCode.INTERNAL, INTERNAL_ERROR)
            await _abort(context, error, INTERNAL_ERROR)
        else:
            end(grpc.StatusCode.OK)
        finally:
            self._in_flight -= 1

    def _begin(self, service: str, method: str, context: Any) -> Call:
        metadata = dict(context.invocation_metadata())
        call = Call(method, calls.request_id(metadata.get(REQUEST_ID)))
        if self._traces:
            call.span = self._traces.begin(f"{service}/{method}", metadata)
        # gRPC tells by the wall clock how much is left, which is nothing if that has just jumped forth. It ends calls
        # that are late by a clock that does not jump.
        if left := context.time_remaining():
            call.deadline = time.monotonic() + left
        calls.begin(call)
        context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        self._unended += 1
        return call

    def _end(self, call: Call, code: grpc.StatusCode, seconds: float, peer: str, message: str) -> None:
        """Counts, logs and traces a call, before its caller hears of its end."""
        model, ok = call.model, code is grpc.StatusCode.OK
        for release in call.releases:
            release()
        self._unended -= 1
        self._requests(call.method, model, code.name).inc()
        self._request_seconds(call.method).observe(seconds)
        if ok and call.images:
            for stage, histogram in self._stages.items():
                histogram(model, call.method).observe(call.seconds[stage])
        what = {"model": model, "version": call.version, "images": call.images}
        if call.span:
            call.span.end(code.name, message, what | {"request_id": call.request_id})
        level = logging.WARNING
        if ok or code is grpc.StatusCode.CANCELLED:
            level = logging.DEBUG if call.method in self._always else logging.INFO
        if log.isEnabledFor(level):
            fields = {"method": call.method, **what, "code": code.name, "seconds": round(seconds, 6)}
            fields |= {f"{stage}_seconds": round(spent, 6) for stage, spent in call.seconds.items()}
            text = f"{call.method} of {model}" if model else call.method
            text += f": {code.name}, {call.images} images in {seconds:.4f} s for {peer}"
            text += f": {message}" if message else ""
            log.log(level, "%s", text, extra={"fields": fields | {"peer": peer}})


def _names(path: str) -> tuple[str, str]:
    """The names of a service and its method."""
    service, _, method = path.removeprefix("/").rpartition("/")
    return service, method


def _of_another_service(handler: Any, method: str) -> grpc.RpcMethodHandler[Any, Any]:
    """Health's and reflection's, told nothing but messages: of others gRPC would log a traceback, and say UNKNOWN."""

    async def read(request: bytes, context: Any) -> Any:
        if handler.request_deserializer is None:
            return request
        try:
            return handler.request_deserializer(request)
        except DecodeError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _no_message(method, error))

    async def unary(request: bytes, context: Any) -> Any:
        return await handler.unary_unary(await read(request, context), context)

    async def stream(request: bytes, context: Any) -> AsyncIterator[Any]:
        async for response in handler.unary_stream(await read(request, context), context):
            yield response

    async def both(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        messages = (await read(request, context) async for request in requests)
        async for response in handler.stream_stream(messages, context):
            yield response

    write = handler.response_serializer
    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(both, response_serializer=write)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(stream, response_serializer=write)
    return grpc.unary_unary_rpc_method_handler(unary, response_serializer=write)


def _no_message(method: str, error: DecodeError) -> str:
    return f"the message is not one that {method} takes: {error}"


async def _abort(context: Any, error: Exception, message: str) -> None:
    """Ends a call with an error's status and details, beside the metadata that it has already."""
    message = message.encode()[:_LONGEST_MESSAGE].decode(errors="ignore")
    metadata = (*context.trailing_metadata(), *trailing_metadata(error, message))
    await context.abort(status_of(error), message, metadata)
