"""Carries an unbounded sequence of requests over bidirectional streams, and yields one response for each, in order.

Requests are read in the caller's thread or task as responses are taken, at most four ahead. A server that stops ends a
stream with UNAVAILABLE; the requests without a response are then sent over a new stream. A stream that is refused is
repeated as `Attempts` says, also when a server that has answered is not back yet.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, closing, contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

import grpc

from glowserve.client.errors import RequestError, request_errors
from glowserve.client.transports.attempts import Attempts, limit

Request = TypeVar("Request")

# The server works on four requests of 64 images at once.
_AHEAD = 4
# How many streams in a row may lose their status before this is an error; see `responses_async`.
_MOST_LOST = 4
# The server puts the index of the failed request before its message.
_INDEX = re.compile(r"^requests\[\d+\](: |\.|$)")


@contextmanager
def stream_errors() -> Iterator[None]:
    """`request_errors`, without the index of the request: callers pass images, not requests."""
    try:
        with request_errors():
            yield
    except RequestError as error:
        error.field = _INDEX.sub("", error.field)
        raise error.with_message(_INDEX.sub("", error.message)) from None


def responses(
    open_stream: Callable[[Iterator[Request]], Any], requests: Iterator[Request], timeout: float
) -> Generator[Any, None, None]:
    """The response to each request, in order.

    Args:
        open_stream: opens a call that returns one response for each request.
        requests: the requests.
        timeout: how many seconds to wait for a response.

    Raises:
        RequestError: the call failed, a response did not arrive in time, or the stream ended without it.
    """
    unanswered = deque(itertools.islice(requests, _AHEAD))
    interruptions = _Interruptions(timeout)
    while unanswered:
        try:
            with closing(_one_stream(open_stream, requests, unanswered, timeout)) as stream:
                for response in stream:
                    interruptions.end()
                    yield response
        except grpc.RpcError as error:
            time.sleep(interruptions.pause(RequestError.of(error)))


class _Interruptions:
    """When a stream that ended early is opened again.

    Args:
        timeout: how many seconds may pass from the end of a stream to the next response.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._attempts: Attempts | None = None
        self._answered = self._answered_ever = False

    def end(self) -> None:
        """A response has arrived."""
        self._attempts = None
        self._answered = self._answered_ever = True

    def pause(self, error: RequestError) -> float:
        """How many seconds to wait before the next stream.

        Raises:
            RequestError: the error, if another stream would not help.
        """
        answered, self._answered = self._answered, False
        if answered and error.code is grpc.StatusCode.UNAVAILABLE:
            return 0
        self._attempts = self._attempts or Attempts(self._timeout)
        return self._attempts.pause(error, restarting=self._answered_ever)


def _one_stream(
    open_stream: Callable[[Iterator[Request]], Any],
    requests: Iterator[Request],
    unanswered: deque[Request],
    timeout: float,
) -> Generator[Any, None, None]:
    """The responses of one stream. Removes answered requests from `unanswered`, and adds those that it reads."""
    sent: SimpleQueue[Request | None] = SimpleQueue()
    for request in unanswered:
        sent.put(request)
    call = open_stream(iter(sent.get, None))
    try:
        while unanswered:
            response = _required(_next(call, timeout))
            unanswered.popleft()
            yield response
            if (following := next(requests, None)) is not None:
                unanswered.append(following)
                sent.put(following)
        sent.put(None)
        _next(call, timeout)  # raises the status, if it is an error
    finally:
        sent.put(None)
        call.cancel()


async def responses_async(
    open_stream: Callable[[AsyncIterator[Request]], Any], requests: AsyncIterator[Request], timeout: float
) -> AsyncGenerator[Any, None]:
    """`responses` for event loops.

    If a stream ends while a request is being written, grpc.aio can lose its status and report INTERNAL without details.
    To find the status, a stream without requests is opened: it has the status of an error that concerns every request,
    such as a missing token. If it has no error, the requests are sent again, the second only after the first response,
    so that the stream does not end during a write.
    """
    unanswered: deque[Request] = deque()
    while len(unanswered) < _AHEAD and (request := await anext(requests, None)) is not None:
        unanswered.append(request)
    lost = 0
    interruptions = _Interruptions(timeout)
    while unanswered:
        stream = _one_stream_async(open_stream, requests, unanswered, timeout, first_alone=lost > 0)
        try:
            async with aclosing(stream):
                async for response in stream:
                    lost = 0
                    interruptions.end()
                    yield response
        except grpc.aio.AioRpcError as error:
            status: grpc.RpcError | None = error
            if _status_is_lost(error) and lost < _MOST_LOST:
                lost += 1
                status = await _status_without_requests(open_stream, timeout)
            if status:
                await asyncio.sleep(interruptions.pause(RequestError.of(status)))


async def _one_stream_async(
    open_stream: Callable[[AsyncIterator[Request]], Any],
    requests: AsyncIterator[Request],
    unanswered: deque[Request],
    timeout: float,
    *,
    first_alone: bool,
) -> AsyncGenerator[Any, None]:
    """`_one_stream` for event loops; with `first_alone`, writes the second request after the first response."""
    sent: asyncio.Queue[Request | None] = asyncio.Queue()
    held = list(unanswered)[1:] if first_alone else []
    for request in itertools.islice(unanswered, len(unanswered) - len(held)):
        sent.put_nowait(request)
    call = open_stream(_until_none(sent))
    arrivals = aiter(call)
    try:
        while unanswered:
            response = _required(await _next_async(arrivals, timeout))
            unanswered.popleft()
            yield response
            while held:
                sent.put_nowait(held.pop(0))
            if (following := await anext(requests, None)) is not None:
                unanswered.append(following)
                sent.put_nowait(following)
        sent.put_nowait(None)
        await _next_async(arrivals, timeout)  # raises the status, if it is an error
    finally:
        sent.put_nowait(None)  # cancel() does not end gRPC's reader of requests if the call has ended already
        call.cancel()


def _status_is_lost(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and not RequestError.of(error).reason


async def _status_without_requests(
    open_stream: Callable[[AsyncIterator[Request]], Any], timeout: float
) -> grpc.RpcError | None:
    """The error of a stream without requests; None if it has no error."""
    nothing: asyncio.Queue[Request | None] = asyncio.Queue()
    nothing.put_nowait(None)
    try:
        await _next_async(aiter(open_stream(_until_none(nothing))), timeout)
    except grpc.RpcError as error:
        return error
    return None


def _next(call: Any, timeout: float) -> Any:
    """The next response; None after the last."""
    if limit(timeout) is None:
        return next(call, None)
    late = threading.Event()

    def give_up() -> None:
        late.set()
        call.cancel()

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        return next(call, None)
    except grpc.RpcError:
        if late.is_set():
            raise _late(timeout) from None
        raise
    finally:
        timer.cancel()


async def _next_async(arrivals: AsyncIterator[Any], timeout: float) -> Any:
    """The next response; None after the last."""
    try:
        async with asyncio.timeout(limit(timeout)):
            return await anext(arrivals, None)
    except TimeoutError:
        raise _late(timeout) from None


async def _until_none(queue: asyncio.Queue[Request | None]) -> AsyncIterator[Request]:
    while (request := await queue.get()) is not None:
        yield request


def _required(response: Any) -> Any:
    if response is None:
        raise RequestError(grpc.StatusCode.INTERNAL, "the service ended the stream before it had answered")
    return response


def _late(timeout: float) -> RequestError:
    return RequestError(
        grpc.StatusCode.DEADLINE_EXCEEDED, f"there was no answer within {timeout:g} s; allow more time"
    )
