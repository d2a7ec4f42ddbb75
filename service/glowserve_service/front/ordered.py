"""Answers several parts of a stream at a time, in order; how many are under way is bounded."""

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
    most: float,
    size: Callable[[A], float] = lambda _: 1,
) -> AsyncGenerator[T, None]:
    """The results for each argument, in order.

    While nobody takes results, no call begins, and at most one argument is read ahead of the calls. An error, of a call
    or in place of an argument, is raised after the results of those before it. At the end, however it comes, what is
    still under way is cancelled.

    Args:
        arguments: read one at a time.
        function: called in the order of the arguments, before the results of earlier calls are there.
        most: another call begins while the sizes of those under way add up to less.
        size: of an argument.
    """
    under_way: deque[tuple[asyncio.Future[Any], float]] = deque()
    arrival, taken = _next(arguments), 0.0
    ended = False
    try:
        while not ended or under_way:
            awaited = [under_way[0][0]] if under_way else []
            if reads := not ended and (taken < most or not under_way):
                awaited.append(arrival)
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if not (reads and arrival.done()):
                result, freed = under_way.popleft()
                taken -= freed
                yield result.result()
            elif arrival.exception():  # to be raised when its turn comes
                under_way.append((arrival, 0))
                ended = True
            elif (argument := arrival.result()) is None:
                ended = True
            else:
                under_way.append((asyncio.ensure_future(function(argument)), size(argument)))
                taken += under_way[-1][1]
                arrival = _next(arguments)
    finally:
        open_ends = [arrival, *(future for future, _ in under_way)]
        for future in open_ends:
            future.cancel()
        await asyncio.gather(*open_ends, return_exceptions=True)


def _next(arguments: AsyncIterator[A]) -> asyncio.Future[A | None]:
    """The next argument; None after the last."""
    return asyncio.ensure_future(anext(arguments, None))
