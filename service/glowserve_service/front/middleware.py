"""The middleware: gives every call an id, counts, times, logs and traces it, and turns every error into a status.

It stands between gRPC and the servicers, which are added to it as to a server. It passes a `Call` to our
servicers, in place of gRPC's context. A gRPC interceptor would be one more coroutine for each call.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError

from glowserve.output import shortened
from glowserve.runtime.errors import GlowserveError, InvalidRequestError
from glowserve.runtime.runner import PREPARATION, SERIALIZATION
from glowserve_service.config import ServiceConfig
from glowserve_service.errors import CallsExhaustedError, UnavailableError
from glowserve_service.front.call import Call, request_id
from glowserve_service.front.other_services import OtherServices, no_message
from glowserve_service.front.received import Holding, ReceivedBytes, free_frames
from glowserve_service.front.requests import Requests
from glowserve_service.front.status import status_of, trailing_metadata
from glowserve_service.front.wire import RequestLimits, request_type
from glowserve_service.observability import log_context
from glowserve_service.observability.call_line import LONGEST_MESSAGE, CallLine
from glowserve_service.observability.log_context import LogContext
from glowserve_service.observability.metrics import Metrics
from glowserve_service.observability.traces import Traces
from glowserve_service.scheduling.deadlines import is_late
from glowserve_service.security.access import refusal
from glowserve_service.security.tokens import Tokens

log = logging.getLogger(__name__)

INTERNAL_ERROR = "internal error; it is in the server's log"
REQUEST_ID = "x-request-id"
"""The key of metadata: a caller may send an id of its own, and is sent the id that is in the log."""

# How often `quiet` looks whether calls begin or end; how many looks in a row must see none; how many it makes if
# callers go on, but accepted calls do not end: by then a client has made its last attempt; and how many at most.
_LOOK_SECONDS, _QUIET_LOOKS, _PATIENCE_LOOKS, _MOST_LOOKS = 0.02, 10, 50, 250

# In bytes. The message is in the metadata three times, escaped or in base64, and clients accept 8 KiB of metadata.
_LONGEST_MESSAGE = 1280


class CallMiddleware(grpc.GenericRpcHandler):
    """Wraps the methods of the gRPC services that are added to it, and is itself added to a server.

    Args:
        services: the full names of the services whose calls are counted, logged and traced; see `other_services.py` for
            other ones.
        metrics: where calls are counted.
        config: has the limits of requests, calls and memory.
        always: methods that are accepted even before `accept`, after `refuse`, and beside too many calls.
        traces: where calls are traced.
    """

    def __init__(
        self,
        services: Collection[str],
        metrics: Metrics,
        config: ServiceConfig,
        always: Collection[str] = (),
        traces: Traces | None = None,
    ) -> None:
        self._services = services
        self._metrics = metrics
        metrics.ready.set_function(lambda: float(self.accepts))
        metrics.requests_in_flight.set_function(lambda: float(self._in_flight))
        self._config = config
        self.received = ReceivedBytes(config.max_received_bytes, config.max_message_bytes)
        """The budget of bytes that callers have sent."""
        metrics.received_bytes.set_function(lambda: float(self.received.held))
        self._other_services = OtherServices(self.received, config.max_concurrent_calls)
        self._always = always
        self._traces = traces
        self._services_added: list[Any] = []
        # Each is made once: every call needs them.
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._requests = functools.cache(metrics.requests.labels)
        self._request_seconds = functools.cache(metrics.request_seconds.labels)
        self._stages = {
            PREPARATION: functools.cache(metrics.preparation_seconds.labels),
            SERIALIZATION: functools.cache(metrics.serialization_seconds.labels),
        }
        self._stopping = asyncio.Event()
        self._refusal = "the server is starting; try again"
        self._open_calls = 0
        # A call is counted as ended before its caller learns of the end. It is open until gRPC has written its answer.
        self._in_flight = 0
        self._change = asyncio.Event()
        """Set when a call begins or ends."""
        self.tokens: Tokens | None = None
        """Every call must present one of these; None: no call needs a token."""
        self.image_values: Callable[[], int] = lambda: 0
        """How many values the largest image of a served model has."""

    @property
    def accepts(self) -> bool:
        """Whether calls are accepted."""
        return not self._refusal

    def accept(self) -> None:
        """Accepts calls; until then they are answered UNAVAILABLE."""
        self.received.begin()
        self._refusal = ""

    def refuse(self) -> None:
        """Answers UNAVAILABLE to new calls. Calls that have begun go on; streams get no further requests."""
        self._refusal = "the server is stopping; try another"
        self._stopping.set()

    async def idle(self) -> None:
        """Returns when no call is open."""
        while self._open_calls:
            self._change.clear()
            await self._change.wait()

    async def quiet(self) -> None:
        """Returns when no call is open and none begins any more, or when none of those that are open has ended lately.

        Calls that gRPC has received reach this event loop one at a time, and late if processor time is short. So this
        looks again and again instead of waiting once: what delays the calls delays the looks.
        """
        still, patience, fewest = 0, _PATIENCE_LOOKS, self._open_calls
        for _ in range(_MOST_LOOKS):
            if still == _QUIET_LOOKS or not patience:
                return
            self._change.clear()
            await asyncio.sleep(_LOOK_SECONDS)
            still = 0 if self._open_calls or self._change.is_set() else still + 1
            patience -= 1
            if self._open_calls < fewest:  # accepted calls end, and their callers make others
                fewest, patience = self._open_calls, _PATIENCE_LOOKS

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Adds services, as a server does."""
        self._services_added += handlers

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Generated code calls this, too; the handlers are among the generic ones."""

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
        refused = refusal(self.tokens, handler_call_details)
        if self._in_flight >= self._config.max_concurrent_calls:
            refused = refused or self._one_too_many(*_names(path))
        return self._refusing(*_names(path), refused) if refused else self._handlers[path]

    def _one_too_many(self, service: str, method: str) -> GlowserveError | None:
        """Why a call beyond the limit of concurrent calls is refused; None if its method has no limit."""
        most = self._config.max_concurrent_calls
        if method in self._always or service not in self._services:
            return None
        return CallsExhaustedError(
            f"{self._in_flight} calls are in flight; the server takes {most} (--max-concurrent-calls); try again "
            "later, with increasing pauses"
        )

    def _wrapped(self, service: str, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        if service not in self._services:
            return self._other_services.wrapped(handler, method)
        limits = RequestLimits(
            request_type(service, method),
            max_images=self._config.max_images_per_call,
            max_values=lambda: self._config.max_images_per_call * self.image_values(),
        )

        def read(request: bytes, call: Call) -> Any:
            call.holding.add(len(request))
            with call.timed(PREPARATION):
                limits.check(request)
                try:
                    return handler.request_deserializer(request)
                except DecodeError as error:
                    raise InvalidRequestError(no_message(method, error)) from error

        async def receive(context: Any, call: Call) -> Any:
            # The bytes are freed here: the message has copies of them.
            return read(await self.received.receive(context), call)

        def write(response: Any, call: Call) -> bytes:
            with call.timed(SERIALIZATION):
                return cast("bytes", handler.response_serializer(response))

        async def unary(_: Any, context: Any) -> bytes:
            async with self._call(service, method, context) as call:
                return write(await handler.unary_unary(await receive(context, call), call), call)

        async def stream(_: Any, context: Any) -> AsyncIterator[bytes]:
            async with (
                self._call(service, method, context) as call,
                aclosing(handler.unary_stream(await receive(context, call), call)) as responses,
            ):
                async for response in responses:
                    yield write(response, call)

        async def both(_: Any, context: Any) -> AsyncIterator[bytes]:
            async with self._call(service, method, context) as call:
                requests = Requests(context, self._stopping, call)
                messages = (read(request, call) async for request in requests)
                async with aclosing(handler.stream_stream(messages, call)) as responses:
                    async for response in responses:  # one for each request, in their order
                        yield write(response, call)
                        call.holding.answered()
                if requests.cut_short:
                    raise UnavailableError(self._refusal)

        async def collect(_: Any, context: Any) -> bytes:
            async with self._call(service, method, context) as call:
                requests = Requests(context, self._stopping, call)

                async def messages() -> AsyncIterator[Any]:
                    async for request in requests:
                        yield read(request, call)
                    if requests.cut_short:  # an answer to a part would be wrong
                        raise UnavailableError(self._refusal)

                return write(await handler.stream_unary(messages(), call), call)

        # Handlers take and return bytes. If gRPC parsed them, it would answer UNKNOWN to bytes that are no message, and
        # such calls would not be counted. All of them are streams of requests: gRPC receives no request on its own.
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(both)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(collect)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.stream_unary_rpc_method_handler(unary)

    def _refusing(
        self, service: str, method: str, refused: GlowserveError
    ) -> grpc.RpcMethodHandler[Any, Any]:
        async def refuse(_: Any, context: Any) -> AsyncIterator[bytes]:
            async with self._call(service, method, context):
                raise refused
            yield b""

        # A stream, whatever the method is: so gRPC does not receive the request, which may be large.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _call(self, service: str, method: str, context: Any) -> _CallScope:
        return _CallScope(self, service, method, context)

    def _begin(self, service: str, method: str, context: Any) -> Call:
        metadata = dict(context.invocation_metadata())
        call = Call(
            method, request_id(metadata.get(REQUEST_ID)), peer=context.peer(), holding=Holding(self.received)
        )
        if self._traces:
            call.span = self._traces.begin(f"{service}/{method}", metadata)
        # gRPC computes the time that is left from the wall clock: if that has just jumped forward, 0 is left. gRPC ends
        # late calls by a clock that does not jump.
        if left := context.time_remaining():
            call.deadline = call.began + left
        log_context.bind(LogContext(call.request_id, call.span.trace_id if call.span else ""))
        context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        self._open_calls += 1
        # The task ends when gRPC has written the answer. The context's own callbacks would be part of a cycle of
        # references that keeps the call alive.
        if task := asyncio.current_task():
            task.add_done_callback(functools.partial(self._close, call))
        self._in_flight += 1
        self._change.set()
        return call

    async def _end(self, call: Call, context: Any, error: BaseException | None) -> None:
        """Makes a status of the error that ends a call, if there is one."""
        if error is None:
            self._finish(call, grpc.StatusCode.OK)
        elif isinstance(error, GlowserveError):
            self._finish(call, status_of(error), str(error))
            await _abort(call, context, error, str(error))
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            codes = grpc.StatusCode
            late = _was_late(call, context)
            self._finish(call, codes.DEADLINE_EXCEEDED if late else codes.CANCELLED)
        elif isinstance(error, Exception):
            log.error("%s failed", call.method, exc_info=error)
            self._finish(call, grpc.StatusCode.INTERNAL, INTERNAL_ERROR)
            await _abort(call, context, error, INTERNAL_ERROR)

    def _close(self, call: Call, _task: Any) -> None:
        call.is_open = False
        self._open_calls -= 1
        self._change.set()

    def _finish(self, call: Call, code: grpc.StatusCode, message: str = "") -> None:
        """Counts, logs and traces a call, before its caller learns of its end."""
        seconds = time.monotonic() - call.began
        model, ok = call.model, code is grpc.StatusCode.OK
        self._requests(call.method, model, code.name).inc()
        self._request_seconds(call.method).observe(seconds)
        if ok and call.images:
            for stage, histogram in self._stages.items():
                histogram(model, call.method).observe(call.seconds[stage])
        self._in_flight -= 1  # last, so that a scrape that sees no call in flight sees all of them counted
        if call.span:
            facts = {"model": model, "version": call.version, "images": call.images}
            call.span.end(code.name, message, facts | {"request_id": call.request_id})
        level = logging.WARNING
        if ok or code is grpc.StatusCode.CANCELLED:
            level = logging.DEBUG if call.method in self._always else logging.INFO
        if log.isEnabledFor(level):
            log.log(
                level,
                CallLine(
                    method=call.method,
                    model=model,
                    version=call.version,
                    images=call.images,
                    not_finite=call.not_finite,
                    code=code.name,
                    seconds=seconds,
                    stages={**call.seconds},
                    peer=call.peer,
                    message=shortened(message, LONGEST_MESSAGE),
                ),
            )


class _CallScope:
    """A call from its beginning to its end: `async with` gives the `Call`, and makes a status of an error.

    Args:
        middleware: counts, logs and traces the call.
        service: the full name of the service.
        method: the name of the method.
        context: gRPC's.
    """

    __slots__ = ("_call", "_context", "_method", "_middleware", "_service")

    def __init__(self, middleware: CallMiddleware, service: str, method: str, context: Any) -> None:
        self._middleware, self._service, self._method, self._context = middleware, service, method, context

    async def __aenter__(self) -> Call:
        middleware = self._middleware
        self._call = middleware._begin(self._service, self._method, self._context)
        if middleware._refusal and self._method not in middleware._always:
            error = UnavailableError(middleware._refusal)
            await self.__aexit__(type(error), error, None)
        return self._call

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._middleware._end(self._call, self._context, error)
        finally:
            self._call.holding.end()


def _names(path: str) -> tuple[str, str]:
    """The names of a service and its method."""
    service, _, method = path.removeprefix("/").rpartition("/")
    return service, method


def _was_late(call: Call, context: Any) -> bool:
    """Whether a call that gRPC has ended was ended by its deadline."""
    if math.isinf(call.deadline):  # it had none, or its deadline had passed when it arrived
        return bool(context.time_remaining() == 0)
    return is_late(call.deadline, call.began)


async def _abort(call: Call, context: Any, error: Exception, message: str) -> None:
    """Ends a call with the status and the details of an error. The trailing metadata that it has are kept."""
    free_frames(error)
    if not call.is_open:  # its caller has left a stream, and this is the end of that
        return
    message = message.encode()[:_LONGEST_MESSAGE].decode(errors="ignore")
    metadata = (*context.trailing_metadata(), *trailing_metadata(error, message))
    await context.abort(status_of(error), message, metadata)
