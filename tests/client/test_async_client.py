"""What only the client for event loops can do; that it answers as its twin does is shown beside the twin."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array


def until_idle(server: Server) -> None:
    """Waits until no call is in flight and no image waits."""
    value = server.metrics.registry.get_sample_value
    deadline = time.monotonic() + 60
    while value("glowserve_requests_in_flight") or value(
        "glowserve_queue_length", {"model": "digits", "direction": "forward"}
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_many_calls_share_a_client(server: Server, client: glowserve.Client, digits: UInt8Array) -> None:
    expected = client.score(digits).log_likelihood

    async def run() -> None:
        async with glowserve.AsyncClient(f"127.0.0.1:{server.port}") as shared:
            calls = [shared.score(digits[i : i + 3], seed=0) for i in range(100)]
            for i, scores in enumerate(await asyncio.gather(*calls)):
                np.testing.assert_allclose(scores.log_likelihood, expected[i : i + 3], rtol=1e-5)

    asyncio.run(run())


def test_samples_come_some_at_a_time(server: Server, client: glowserve.Client) -> None:
    async def run() -> list[glowserve.Samples]:
        async with glowserve.AsyncClient(f"127.0.0.1:{server.port}") as connected:
            return [part async for part in connected.iter_samples(70, seed=5, temperature=0.7)]

    parts = asyncio.run(run())
    assert len(parts) > 1
    np.testing.assert_array_equal(
        np.concatenate([part.images for part in parts]), client.sample(70, seed=5, temperature=0.7).images
    )


def test_leaving_samples_midway_ends_the_call(server: Server) -> None:
    async def run() -> None:
        async with glowserve.AsyncClient(f"127.0.0.1:{server.port}") as client:
            drawn = client.iter_samples(100_000, temperature=0)
            async for _ in drawn:
                break
            await drawn.aclose()  # type: ignore[attr-defined]  # a generator, as all are
            await asyncio.to_thread(until_idle, server)

    asyncio.run(run())


def test_cancelling_a_call_ends_it_on_the_server_too(
    run_server: Callable[..., Any], digits: UInt8Array
) -> None:
    async def run(server: Server) -> None:
        async with glowserve.AsyncClient(f"127.0.0.1:{server.port}") as client:
            call = asyncio.create_task(client.score(digits[:5]))
            async with asyncio.timeout(60):
                while not server.metrics.registry.get_sample_value("glowserve_requests_in_flight"):
                    await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await asyncio.to_thread(until_idle, server)
            assert len(await client.models()) == 1

    with run_server(max_queue_delay_ms=600_000.0, drain_seconds=0.0) as server:
        asyncio.run(run(server))
        assert server.metrics.registry.get_sample_value(
            "glowserve_requests_total", {"method": "Score", "model": "digits", "code": "CANCELLED"}
        )


def test_a_call_ends_at_its_timeout(run_server: Callable[..., Any], digits: UInt8Array) -> None:
    async def run(server: Server) -> None:
        async with glowserve.AsyncClient(f"127.0.0.1:{server.port}", timeout=0.3) as client:
            with pytest.raises(glowserve.RequestError) as caught:
                await client.score(digits[:5])
            assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
            with pytest.raises(glowserve.RequestError) as caught:
                async for _ in client.iter_samples(0):
                    pass
            assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT

    with run_server(max_queue_delay_ms=600_000.0, drain_seconds=0.0) as server:
        asyncio.run(run(server))


def test_a_service_that_is_not_there_is_unavailable() -> None:
    async def run() -> None:
        async with glowserve.AsyncClient("127.0.0.1:1") as client:
            with pytest.raises(glowserve.RequestError) as caught:
                await client.models()
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE

    asyncio.run(run())
