"""Works on several items of a stream at a time and yields their results in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

A = TypeVar("A")
T = TypeVar("T")


async def in_order(
    arguments: AsyncIterator[A],
    function: Callable[[A], Awaitable[T]],
    max_load: float,
    size: Callable[[A], float] = lambda _: 1,
) -> AsyncGenerator[T, None]:
    """Yields the function's result for each argument, in the order of the arguments.

    While the consumer takes no results, no call begins, and at most one argument is read ahead of the calls. An error
    of a call, or of `arguments`, is raised after the results before it. When the generator ends or is closed, it
    cancels the calls that have not ended.

    Args:
        arguments: read one at a time.
        function: called in the order of the arguments, without waiting for the results of earlier calls.
        max_load: the next call begins while the sizes of the open calls add up to less than this. A call may exceed it.
        size: of an argument.
    """
    open_calls: deque[tuple[asyncio.Future[Any], float]] = deque()
    arrival, load = _next(arguments), 0.0
    ended = False
    try:
        while not ended or open_calls:
            awaited = [open_calls[0][0]] if open_calls else []
            if may_begin := not ended and (load < max_load or not open_calls):
                awaited.append(arrival)
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if not (may_begin and arrival.done()):
                result, freed = open_calls.popleft()
                load -= freed
                yield result.result()
            elif arrival.exception():  # raised when its turn comes
                open_calls.append((arrival, 0))
                ended = True
            elif (argument := arrival.result()) is None:
                ended = True
            else:
                open_calls.append((asyncio.ensure_future(function(argument)), size(argument)))
                load += open_calls[-1][1]
                arrival = _next(arguments)
    finally:
        futures = [arrival, *(future for future, _ in open_calls)]
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)


def _next(arguments: AsyncIterator[A]) -> asyncio.Future[A | None]:
    """The next argument; None after the last."""
    return asyncio.ensure_future(anext(arguments, None))
