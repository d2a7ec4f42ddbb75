"""Ordered results with several open calls: what is read, what is raised, and what is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from glowserve_service.front.ordered import in_order

from tests.service.scheduling.batching import PATIENCE, settle


class Doubling:
    """Doubles a number once it is allowed to; knows which calls have begun and which were cancelled."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.cancelled: list[int] = []
        self._allowed: dict[int, asyncio.Event] = {}

    async def __call__(self, number: int) -> int:
        self.begun.append(number)
        try:
            async with asyncio.timeout(PATIENCE):
                await self._event(number).wait()
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        if number < 0:
            raise ValueError(f"{number} is negative")
        return 2 * number

    def allow(self, *numbers: int) -> None:
        for number in numbers:
            self._event(number).set()

    def _event(self, number: int) -> asyncio.Event:
        return self._allowed.setdefault(number, asyncio.Event())


class Source:
    """Yields numbers, and fails at None; knows how many were read."""

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


@pytest.fixture
def doubling() -> Doubling:
    return Doubling()


async def test_results_come_in_order_whichever_call_ends_first(doubling: Doubling) -> None:
    results = in_order(aiter(Source(*range(6))), doubling, 3)
    first = asyncio.ensure_future(anext(results))
    await settle()
    assert doubling.begun == [0, 1, 2]
    doubling.allow(2, 1)
    await settle()
    assert not first.done()
    doubling.allow(0, 3, 4, 5)
    assert [await first, *[result async for result in results]] == [0, 2, 4, 6, 8, 10]


async def test_while_no_result_is_taken_no_call_begins_and_one_argument_is_read(doubling: Doubling) -> None:
    doubling.allow(*range(100))
    source = Source(*range(100))
    async with aclosing(in_order(aiter(source), doubling, 4)) as results:
        for taken in range(1, 20):
            assert await anext(results) == 2 * (taken - 1)
            await settle()
            assert len(doubling.begun) <= taken + 4
            assert source.read <= len(doubling.begun) + 1


async def test_the_sizes_of_open_calls_are_bounded_and_a_single_call_may_be_larger(
    doubling: Doubling,
) -> None:
    sizes = {0: 9.0, 1: 0.5, 2: 0.4, 3: 0.3, 4: 0.1}
    results = in_order(aiter(Source(*sizes)), doubling, 1, sizes.__getitem__)
    result = asyncio.ensure_future(anext(results))
    await settle()
    assert doubling.begun == [0]
    doubling.allow(0)
    assert await result == 0
    result = asyncio.ensure_future(anext(results))
    await settle()
    assert doubling.begun == [0, 1, 2, 3]
    doubling.allow(1)
    assert await result == 2
    doubling.allow(2, 3, 4)
    assert [result async for result in results] == [4, 6, 8]


@pytest.mark.parametrize(("bad", "kind"), [(-3, ValueError), (None, KeyError)])
async def test_an_error_of_a_call_or_of_the_source_is_raised_after_the_results_before_it(
    bad: int | None, kind: type[Exception], doubling: Doubling
) -> None:
    doubling.allow(-3)
    source = Source(0, 1, bad, 4, 5)
    results = in_order(aiter(source), doubling, 10)
    first = asyncio.ensure_future(anext(results))
    await settle()
    doubling.allow(1, 0)
    assert [await first, await anext(results)] == [0, 2]
    with pytest.raises(kind):
        await anext(results)
    assert doubling.cancelled == ([4, 5] if bad else [])
    assert source.closed


@pytest.mark.parametrize("way", ["closed", "cancelled"])
async def test_a_consumer_that_leaves_cancels_the_open_calls(way: str, doubling: Doubling) -> None:
    doubling.allow(0)
    results = in_order(aiter(Source(*range(10))), doubling, 3)
    assert await anext(results) == 0
    waiting = asyncio.ensure_future(anext(results))
    await settle()
    if way == "cancelled":
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    else:
        doubling.allow(1)
        assert await waiting == 2
        await results.aclose()
    assert doubling.cancelled == ([1, 2, 3] if way == "cancelled" else [2, 3])
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_no_arguments_give_no_results(doubling: Doubling) -> None:
    assert [result async for result in in_order(aiter(Source()), doubling, 3)] == []
