"""One stream for requests that may have no end: few are under way, and none is lost where a service goes away.

Requests are read in the caller's thread or task, as answers are taken. A stream that the service ends as UNAVAILABLE,
because it stops, is followed by another with what was not answered, if it has answered something; gRPC itself tries
those again that have not.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

import grpc

from glowserve.client.errors import RequestError, request_errors

Request = TypeVar("Request")

# A service works on as many side by side if they are portions of 64 images.
_AHEAD = 4
# Streams in a row whose status was lost, and that answered nothing, before that is an error.
_MOST_LOST = 4
# What the service puts before the message about one request of a stream.
_NUMBER = re.compile(r"^requests\[\d+\]: ")


@contextmanager
def stream_errors() -> Iterator[None]:
    """`request_errors`, without the number of the request: callers pass images, and know of no requests."""
    try:
        with request_errors():
            yield
    except RequestError as error:
        message = _NUMBER.sub("", error.message)
        raise RequestError(error.code, message, error.reason, error.retry_after, error.request_id) from None


def answers(
    open_stream: Callable[[Iterator[Request]], Any], requests: Iterator[Request], timeout: float
) -> Iterator[Any]:
    """The answer to each request, in order.

    Args:
        open_stream: from requests to a call that has as many answers.
        requests: read four ahead of the answers.
        timeout: seconds to wait for an answer.

    Raises:
        grpc.RpcError: the call failed.
        RequestError: an answer did not come.
    """
    unanswered = deque(itertools.islice(requests, _AHEAD))
    while unanswered:
        sent: SimpleQueue[Request | None] = SimpleQueue()
        for request in unanswered:
            sent.put(request)
        call = open_stream(iter(sent.get, None))
        answered = False
        try:
            while unanswered:
                answer = _required(_next(call, timeout))
                unanswered.popleft()
                answered = True
                yield answer
                if (following := next(requests, None)) is not None:
                    unanswered.append(following)
                    sent.put(following)
            sent.put(None)
            _next(call, timeout)  # nothing but the status
        except grpc.RpcError as error:
            if not answered or error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        finally:
            sent.put(None)
            call.cancel()


async def answers_async(
    open_stream: Callable[[AsyncIterator[Request]], Any], requests: AsyncIterator[Request], timeout: float
) -> AsyncIterator[Any]:
    """`answers`, for event loops.

    Where a stream ends while it is written to, grpc.aio may lose its status and say INTERNAL instead, without details.
    So one without requests is asked for what holds for all (rights, say), and then one that sends its second request
    after its first answer, so that no write meets its end.
    """
    unanswered: deque[Request] = deque()
    while len(unanswered) < _AHEAD and (first := await anext(requests, None)) is not None:
        unanswered.append(first)
    lost = 0
    while unanswered:
        sent: asyncio.Queue[Request | None] = asyncio.Queue()
        held = list(unanswered)[1:] if lost else []
        for request in itertools.islice(unanswered, len(unanswered) - len(held)):
            sent.put_nowait(request)
        call = open_stream(_until_none(sent))
        arrivals = aiter(call)
        answered = False
        try:
            while unanswered:
                answer = _required(await _next_async(arrivals, timeout))
                unanswered.popleft()
                answered, lost = True, 0
                yield answer
                for request in held:
                    sent.put_nowait(request)
                held = []
                if (following := await anext(requests, None)) is not None:
                    unanswered.append(following)
                    sent.put_nowait(following)
            sent.put_nowait(None)
            await _next_async(arrivals, timeout)  # nothing but the status
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INTERNAL and not RequestError.of(error).reason:
                lost += 1
                if lost > _MOST_LOST:
                    raise
                await _ask_nothing(open_stream, timeout)
            elif not answered or error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        finally:
            call.cancel()


async def _ask_nothing(open_stream: Callable[[AsyncIterator[Request]], Any], timeout: float) -> None:
    """Raises what a stream without requests ends with, if that is not well."""
    nothing: asyncio.Queue[Request | None] = asyncio.Queue()
    nothing.put_nowait(None)
    await _next_async(aiter(open_stream(_until_none(nothing))), timeout)


def _next(call: Any, timeout: float) -> Any:
    """The next answer; None after the last."""
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
    try:
        async with asyncio.timeout(timeout):
            return await anext(arrivals, None)
    except TimeoutError:
        raise _late(timeout) from None


async def _until_none(queue: asyncio.Queue[Request | None]) -> AsyncIterator[Request]:
    while (request := await queue.get()) is not None:
        yield request


def _required(answer: Any) -> Any:
    if answer is None:
        raise RequestError(grpc.StatusCode.INTERNAL, "the service ended the stream before it had answered")
    return answer


def _late(timeout: float) -> RequestError:
    return RequestError(
        grpc.StatusCode.DEADLINE_EXCEEDED, f"there was no answer within {timeout:g} s; allow more time"
    )
