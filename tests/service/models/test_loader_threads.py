"""The threads that load: their time limit, and what hangs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from glowserve_service.errors import UnavailableError
from glowserve_service.models.loader_threads import LoaderThreads, LoadTimeoutError
from glowserve_service.observability.metrics import Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    """What hangs in a test ends with it."""
    event = threading.Event()
    yield event
    event.set()


def hanging(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("glowserve_hanging_loads")


async def until_none_hangs(metrics: Metrics) -> None:
    async with asyncio.timeout(60):
        while hanging(metrics):
            await asyncio.sleep(0.01)


async def test_results_and_errors_arrive(metrics: Metrics) -> None:
    threads = LoaderThreads(60, metrics)
    assert await threads.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await threads.run(divmod, 7, 0)


async def test_without_a_limit_a_function_may_take_any_time(metrics: Metrics, go_on: threading.Event) -> None:
    asyncio.get_running_loop().call_later(0.2, go_on.set)
    assert await LoaderThreads(0, metrics).run(go_on.wait, 60)


async def test_a_time_out_of_the_function_itself_is_no_hanging_load(metrics: Metrics) -> None:
    """A soft mount of a network file system raises TimeoutError."""

    def fail() -> None:
        raise TimeoutError("of the network")

    with pytest.raises(TimeoutError, match="of the network"):
        await LoaderThreads(60, metrics).run(fail)
    assert hanging(metrics) == 0


async def test_what_takes_too_long_is_left_behind_and_a_late_result_is_passed_on(
    metrics: Metrics, go_on: threading.Event
) -> None:
    threads, late = LoaderThreads(0.05, metrics), list[bool]()
    with pytest.raises(LoadTimeoutError, match=r"longer than load_timeout_seconds, 0\.05 s"):
        await threads.run(go_on.wait, 60, on_late=late.append)
    assert hanging(metrics) == 1
    assert await threads.run(divmod, 7, 2) == (3, 1)
    go_on.set()
    await until_none_hangs(metrics)
    assert late == [True]


async def test_while_three_hang_nothing_more_is_called(metrics: Metrics, go_on: threading.Event) -> None:
    threads = LoaderThreads(0.05, metrics)
    for _ in range(3):
        with pytest.raises(LoadTimeoutError):
            await threads.run(go_on.wait, 60)
    with pytest.raises(UnavailableError, match="3 earlier reads of the repository or loads of models hang"):
        await threads.run(divmod, 7, 2)
    go_on.set()
    await until_none_hangs(metrics)
    assert await threads.run(divmod, 7, 2) == (3, 1)
