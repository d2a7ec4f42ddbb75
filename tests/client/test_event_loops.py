"""The way of an AsyncClient through event loops: made before them, and used in several."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server

import glowserve
from tests.client.serving import wait_until_idle
from tests.servers import RunServer
from tests.service.stubs import address

BLANK = np.zeros((8, 8), np.uint8)


async def use(client: glowserve.AsyncClient) -> int:
    """Makes a call of each kind, and returns how many images came back."""
    streamed = [len(scores) async for scores in client.iter_scores([BLANK] * 70)]
    drawn = [len(samples) async for samples in client.iter_samples(5, temperature=0)]
    return len(await client.score(BLANK)) + sum(streamed) + sum(drawn)


def test_a_client_may_be_made_before_a_loop_and_used_in_several(server: Server) -> None:
    client = glowserve.AsyncClient(address(server))
    for _ in range(3):
        assert asyncio.run(use(client)) == 76
    asyncio.run(client.close())
    gc.collect()


def test_a_client_may_be_made_in_a_thread_without_a_loop(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        client = pool.submit(glowserve.AsyncClient, address(server)).result()
    assert asyncio.run(use(client)) == 76


def test_loops_in_several_threads_share_a_client(server: Server) -> None:
    client = glowserve.AsyncClient(address(server))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: asyncio.run(use(client)), range(12)))
    assert found == [76] * 12


def test_the_channels_of_loops_that_ended_are_closed(server: Server) -> None:
    client = glowserve.AsyncClient(address(server))
    for _ in range(20):
        asyncio.run(client.models())
    transport = client._transport
    assert len(transport._channels) == 1  # type: ignore[attr-defined]


def test_closing_a_client_cancels_calls_of_other_loops(run_server: RunServer) -> None:
    with run_server(max_queue_delay_ms=600_000.0, drain_seconds=0.0) as server:
        client = glowserve.AsyncClient(address(server))
        value = server.metrics.registry.get_sample_value
        ended: list[BaseException] = []

        async def call() -> None:
            try:
                await client.score(BLANK)
            except (asyncio.CancelledError, glowserve.RequestError) as error:
                ended.append(error)

        thread = threading.Thread(target=lambda: asyncio.run(call()))
        thread.start()

        async def close() -> None:
            async with asyncio.timeout(60):
                while not value("glowserve_requests_in_flight"):
                    await asyncio.sleep(0.01)
            await client.close()

        asyncio.run(close())
        thread.join(60)
        assert len(ended) == 1
        wait_until_idle(server)


async def test_a_closed_client_cannot_call_and_may_be_closed_again(server: Server) -> None:
    client = glowserve.AsyncClient(address(server))
    scores = client.iter_scores([BLANK] * 1000)
    await anext(scores)
    await client.close()
    await client.close()
    for call in (client.models(), client.score(BLANK), client.sample(1), anext(client.iter_scores(BLANK))):
        with pytest.raises(ValueError, match="the client is closed; make another"):
            await call
    with pytest.raises((ValueError, glowserve.RequestError, asyncio.CancelledError)):
        async for _ in scores:
            pass


async def test_a_time_limit_around_a_call_cancels_it(run_server: RunServer) -> None:
    with run_server(max_queue_delay_ms=600_000.0, drain_seconds=0.0) as server:
        async with glowserve.AsyncClient(address(server)) as client:

            async def first() -> object:
                return await anext(client.iter_scores([BLANK]))

            for call in (client.score(BLANK), first(), client.encode(BLANK)):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(call, 0.2)
            await asyncio.to_thread(wait_until_idle, server)
            assert len(await client.models()) == 1


async def test_a_client_serves_a_whole_application(server: Server) -> None:
    """As in a web application: made at import, used by many tasks, closed at the end."""
    client = glowserve.AsyncClient(address(server))

    async def requests() -> AsyncIterator[int]:
        for _ in range(50):
            yield len(await client.score(BLANK))

    async def handle() -> int:
        return sum([n async for n in requests()])

    assert await asyncio.gather(*[handle() for _ in range(8)]) == [50] * 8
    await client.close()


def test_a_service_that_is_not_there_is_unavailable_in_every_loop() -> None:
    client = glowserve.AsyncClient("127.0.0.1:1")
    for _ in range(2):
        with pytest.raises(glowserve.RequestError) as caught:
            asyncio.run(client.models())
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
