"""What AsyncClient has beyond the calls of Client: concurrency, cancellation, and reading in threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array
from tests.client.serving import wait_until_idle
from tests.servers import RunServer
from tests.service.metrics import ended
from tests.service.stubs import address

BLANK = np.zeros((8, 8), np.uint8)


@pytest.fixture
async def asynchronous(server: Server) -> AsyncIterator[glowserve.AsyncClient]:
    """An AsyncClient of `server`."""
    async with glowserve.AsyncClient(address(server)) as client:
        yield client


async def test_many_calls_share_a_client(
    asynchronous: glowserve.AsyncClient, embedded: glowserve.Client, digits: UInt8Array
) -> None:
    expected = embedded.score(digits).log_likelihood
    calls = [asynchronous.score(digits[i : i + 3]) for i in range(100)]
    for i, scores in enumerate(await asyncio.gather(*calls)):
        np.testing.assert_allclose(scores.log_likelihood, expected[i : i + 3], rtol=1e-5)


async def test_images_are_read_beside_the_event_loop(asynchronous: glowserve.AsyncClient) -> None:
    reading, may_go_on = threading.Event(), threading.Event()

    def images() -> Iterator[UInt8Array]:
        yield BLANK
        reading.set()
        assert may_go_on.wait(60)
        yield BLANK

    async def answer() -> list[glowserve.Scores]:
        return [scores async for scores in asynchronous.iter_scores(images())]

    answering = asyncio.create_task(answer())
    await asyncio.to_thread(reading.wait, 60)
    assert len(await asynchronous.models()) == 1  # the loop is free while the images are being read
    may_go_on.set()
    assert sum(map(len, await answering)) == 2


async def test_a_cancelled_call_ends_on_the_server(run_server: RunServer) -> None:
    with run_server(max_queue_delay_ms=600_000.0, drain_seconds=0.0) as server:
        value = server.metrics.registry.get_sample_value
        async with glowserve.AsyncClient(address(server)) as client:
            call = asyncio.create_task(client.score(BLANK))
            async with asyncio.timeout(60):
                while not value("glowserve_requests_in_flight"):
                    await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await asyncio.to_thread(wait_until_idle, server)
            assert len(await client.models()) == 1
        assert ended(server, "Score", "CANCELLED") == 1


async def test_closing_a_client_cancels_its_calls(run_server: RunServer) -> None:
    with run_server(max_queue_delay_ms=600_000.0, drain_seconds=0.0) as server:
        value = server.metrics.registry.get_sample_value
        async with glowserve.AsyncClient(address(server)) as client:
            call = asyncio.create_task(client.score(BLANK))
            async with asyncio.timeout(60):
                while not value("glowserve_requests_in_flight"):
                    await asyncio.sleep(0.01)
        with pytest.raises((asyncio.CancelledError, glowserve.RequestError)):
            await call


async def test_a_target_and_a_transport_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="target is ''; pass HOST:PORT"):
        glowserve.AsyncClient()
    with pytest.raises(ValueError, match="leave out the target"):
        glowserve.AsyncClient("localhost:1", transport=object())  # type: ignore[arg-type]


async def test_a_service_that_is_not_there_is_unavailable() -> None:
    async with glowserve.AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(glowserve.RequestError) as caught:
            await client.models()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
