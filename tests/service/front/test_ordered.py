"""Ordered answers with several calls under way: what is read, what is raised, and what is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from glowserve_service.front.streams import in_order


class Work:
    """Doubles numbers when it is let; knows which have begun, ended, and been cancelled."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.cancelled: list[int] = []
        self.gates: dict[int, asyncio.Event] = {}

    async def __call__(self, number: int) -> int:
        self.begun.append(number)
        gate = self.gates.setdefault(number, asyncio.Event())
        try:
            await gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        if number < 0:
            raise ValueError(f"{number} is negative")
        return 2 * number

    def let(self, *numbers: int) -> None:
        for number in numbers:
            self.gates.setdefault(number, asyncio.Event()).set()


class Source:
    """Yields numbers, knows how many were asked for, and fails at None."""

    def __init__(self, *numbers: int | None) -> None:
        self.numbers = numbers
        self.read = 0
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[int]:
        try:
            for number in self.numbers:
                self.read += 1
                if number is None:
                    raise KeyError("unreadable")
                yield number
        finally:
            self.closed = True


def run(test: Callable[[Work], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test(Work())

    asyncio.run(bounded())


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_results_come_in_order_whichever_is_done_first() -> None:
    async def test(work: Work) -> None:
        results = in_order(aiter(Source(*range(6))), work, 3)
        first = asyncio.ensure_future(anext(results))
        await settle()
        assert work.begun == [0, 1, 2]
        work.let(2, 1)
        await settle()
        assert not first.done()
        work.let(0, 3, 4, 5)
        assert [await first, *[result async for result in results]] == [0, 2, 4, 6, 8, 10]

    run(test)


def test_no_call_begins_and_one_argument_is_read_while_nobody_takes_results() -> None:
    async def test(work: Work) -> None:
        work.let(*range(100))
        source = Source(*range(100))
        async with aclosing(in_order(aiter(source), work, 4)) as results:  # type: ignore[type-var]
            for taken in range(1, 20):
                assert await anext(results) == 2 * (taken - 1)
                await settle()
                assert len(work.begun) <= taken + 4
                assert source.read <= len(work.begun) + 1

    run(test)


def test_sizes_bound_what_is_under_way_and_one_alone_may_be_larger() -> None:
    async def test(work: Work) -> None:
        sizes = {0: 9.0, 1: 0.5, 2: 0.4, 3: 0.3, 4: 0.1}
        results = in_order(aiter(Source(*sizes)), work, 1, sizes.__getitem__)
        arrivals = asyncio.ensure_future(anext(results))
        await settle()
        assert work.begun == [0]
        work.let(0)
        assert await arrivals == 0
        arrivals = asyncio.ensure_future(anext(results))
        await settle()
        assert work.begun == [0, 1, 2, 3]
        work.let(1)
        assert await arrivals == 2
        work.let(2, 3, 4)
        assert [result async for result in results] == [4, 6, 8]

    run(test)


@pytest.mark.parametrize(("bad", "kind"), [(-3, ValueError), (None, KeyError)])
def test_an_error_comes_after_the_results_of_those_before_it(bad: int | None, kind: type[Exception]) -> None:
    async def test(work: Work) -> None:
        work.let(-3)
        source = Source(0, 1, bad, 4, 5)
        results = in_order(aiter(source), work, 10)
        first = asyncio.ensure_future(anext(results))
        await settle()
        work.let(1, 0)
        assert [await first, await anext(results)] == [0, 2]
        with pytest.raises(kind):
            await anext(results)
        assert work.cancelled == ([4, 5] if bad else [])
        assert source.closed

    run(test)


@pytest.mark.parametrize("way", ["closed", "cancelled"])
def test_leaving_it_cancels_what_is_under_way(way: str) -> None:
    async def test(work: Work) -> None:
        source = Source(*range(10))
        work.let(0)
        results: Any = in_order(aiter(source), work, 3)
        assert await anext(results) == 0
        waiting = asyncio.ensure_future(anext(results))
        await settle()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        if way == "closed":
            await results.aclose()
        assert work.cancelled == [1, 2, 3]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(test)


def test_nothing_gives_nothing() -> None:
    async def test(work: Work) -> None:
        assert [result async for result in in_order(aiter(Source()), work, 3)] == []

    run(test)
