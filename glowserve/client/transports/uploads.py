"""Carries a sequence of requests over one stream, for which there is a single response.

The requests are made in the caller's thread, at most two ahead of what gRPC has taken: gRPC's own thread would swallow
the errors of whatever makes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from queue import SimpleQueue
from threading import Semaphore
from typing import Any, TypeVar

import grpc

from glowserve.client.errors import RequestError
from glowserve.client.transports.attempts import limit

Request = TypeVar("Request")

_AHEAD = 2


def upload(method: Any, requests: Iterable[Request], timeout: float, options: Mapping[str, Any]) -> Any:
    """The response to a sequence of requests.

    Args:
        method: of a stub, with a stream of requests and one response.
        requests: the requests. None is asked for after the call has ended.
        timeout: how many seconds the service may take no further request, and how many it may take for the response
            after the last one.
        options: further arguments of the call.

    Raises:
        RequestError: the service takes longer.
        grpc.RpcError: the call failed. What `requests` raises is raised, too, and cancels the call.
    """
    sent: SimpleQueue[Request | None] = SimpleQueue()
    room = Semaphore(_AHEAD)

    def taken() -> Iterator[Request]:
        while (request := sent.get()) is not None:
            yield request
            room.release()

    call = method.future(taken(), **options)
    call.add_done_callback(lambda _: room.release())
    try:
        remaining = iter(requests)
        while not call.done() and (request := next(remaining, None)) is not None:
            sent.put(request)
            if not room.acquire(timeout=limit(timeout)):
                raise _late(timeout)
        sent.put(None)
        return call.result(timeout=limit(timeout))
    except grpc.FutureTimeoutError:
        raise _late(timeout) from None
    finally:
        sent.put(None)
        call.cancel()


def _late(timeout: float) -> RequestError:
    return RequestError(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        f"the service took no request, or gave no answer, within {timeout:g} s; allow more time",
    )
