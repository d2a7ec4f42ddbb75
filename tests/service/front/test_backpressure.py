"""More work than there is room for, callers that leave, and streams that nobody reads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server
from PIL import Image

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Engine, Float32Array, Reverse
from glowserve.runtime.randomness import latents
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.attempts import attempts
from tests.servers import RunServer
from tests.service.metrics import ended, in_flight, queue_length, value
from tests.service.stubs import address, connect
from tests.service.wire import (
    COOL,
    SMALL_WINDOW,
    draw,
    encoded,
    file_of,
    images_of,
    latent_tensor,
    nats,
    raw,
    refusal,
    wait_for,
    wait_until_still,
)

OK, EXHAUSTED = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED
WAITING: dict[str, Any] = {"max_queue_delay_ms": 600_000.0, "drain_seconds": 0.0}
"""Settings of a server whose images wait until a batch is full."""


def load(server: Server) -> tuple[float, float]:
    """Calls in flight, and images in the queues."""
    return in_flight(server), queue_length(server, "forward") + queue_length(server, "reverse")


# Refusals


def test_a_full_queue_refuses_some_calls_and_the_others_are_answered_correctly(
    run_server: RunServer, stub: GlowServiceStub, digits: UInt8Array
) -> None:
    expected = nats(stub.Score(pb.ScoreRequest(images=raw(digits))))
    outcomes: list[tuple[grpc.StatusCode, str]] = []

    def score(first: int) -> None:
        request = pb.ScoreRequest(images=raw(digits[first : first + 12]))
        try:
            response = stubs.glow.Score(request)
        except grpc.RpcError as error:
            outcomes.append((error.code(), error.details()))
        else:
            outcomes.append((OK, ""))
            np.testing.assert_allclose(nats(response), expected[first : first + 12], rtol=1e-5)

    settings = {"max_queue_size": 16, "max_images_per_call": 16, "max_batch_size": 4, "instances": 1}
    with (
        run_server(**settings) as server,
        connect(server) as stubs,
        ThreadPoolExecutor(32) as pool,
    ):
        for _ in range(20):
            list(pool.map(score, range(160)))
            if len({code for code, _ in outcomes}) > 1:
                break
        wait_for(lambda: load(server) == (0, 0))
        score(0)
    assert {code for code, _ in outcomes} == {OK, EXHAUSTED}
    assert all("try again later" in message for code, message in outcomes if code is not OK)
    assert outcomes[-1] == (OK, "")


def until_accepted(call: Callable[[], Any]) -> Any:
    """The answer of a call, which is made again while the queue is full."""
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() is not EXHAUSTED:
                raise
            time.sleep(0.01)


def test_a_call_that_has_begun_is_not_refused_by_a_full_queue(
    run_server: RunServer, stub: GlowServiceStub
) -> None:
    """Neither a stream of samples, nor an encoding, whose latents are decoded once more."""
    expected = draw(stub, n=1000, seed=1, format=pb.IMAGE_FORMAT_RAW)
    rows = latent_tensor(latents(0, 0, 8, 64, COOL))
    codes: list[grpc.StatusCode] = []
    enough = threading.Event()

    def decode_again_and_again() -> None:
        while not enough.is_set():
            try:
                stubs.glow.Decode(pb.DecodeRequest(latents=rows, format=pb.IMAGE_FORMAT_RAW))
                codes.append(OK)
            except grpc.RpcError as error:
                codes.append(error.code())

    def begin_to_sample() -> Iterator[pb.SampleResponse]:
        request = pb.SampleRequest(n=1000, seed=1, temperature=COOL, format=pb.IMAGE_FORMAT_RAW)
        stream = stubs.glow.Sample(request)
        first = next(stream)
        return iter([first, *stream])

    settings = {"max_queue_size": 8, "max_images_per_call": 8, "max_batch_size": 8, "instances": 2}
    with (
        run_server(**settings) as server,
        connect(server) as stubs,
        ThreadPoolExecutor(6) as pool,
    ):
        callers = [pool.submit(decode_again_and_again) for _ in range(6)]
        try:
            responses = until_accepted(begin_to_sample)
            encoding = pb.EncodeRequest(images=raw(expected[:8]))
            encodings = [until_accepted(lambda: stubs.glow.Encode(encoding)) for _ in range(20)]
        finally:
            enough.set()
            for caller in callers:
                caller.result()
    samples = np.concatenate([images_of(response.images) for response in responses])
    np.testing.assert_array_equal(samples, expected)
    assert {len(response.mismatched_values) for response in encodings} == {8}
    assert set(codes) == {OK, EXHAUSTED}


async def test_of_many_streams_on_a_small_queue_each_is_refused_before_its_first_image_or_ends_well(
    run_server: RunServer,
) -> None:
    request = pb.SampleRequest(n=320, seed=1, temperature=COOL)

    async def drawn(stub: GlowServiceStub) -> int:
        n = 0
        try:
            async for response in stub.Sample(request):  # type: ignore[attr-defined]
                n += len(images_of(response.images))
        except grpc.aio.AioRpcError as error:
            if error.code() is not EXHAUSTED:
                raise
        return n

    settings = {"max_queue_size": 64, "max_images_per_call": 32, "max_batch_size": 32}
    with run_server(**settings) as server:
        async with grpc.aio.insecure_channel(address(server)) as channel:
            counts = await asyncio.gather(*[drawn(GlowServiceStub(channel)) for _ in range(20)])
    assert set(counts) == {0, 320}


def test_pictures_that_wait_to_be_decoded_are_bounded(run_server: RunServer) -> None:
    slow = file_of(Image.new("1", (4000, 4000)), "PNG")
    request = pb.ScoreRequest(images=encoded(slow, slow))
    settings = {"max_queue_size": 4, "max_images_per_call": 4, "max_batch_size": 4}
    with run_server(**settings) as server, connect(server) as stubs:
        calls = [stubs.glow.Score.future(request) for _ in range(20)]
        assert {call.code() for call in calls} == {OK, EXHAUSTED}
        refused = next(call for call in calls if call.code() is not OK)
        assert "try again later" in refused.details()
        assert len(stubs.glow.Score(request).scores) == 2


# Callers that leave


@pytest.fixture
def waiting_server(run_server: RunServer) -> Iterator[Server]:
    """A server whose images wait until a batch of 32 is full."""
    with run_server(**WAITING) as server:
        yield server


def test_the_images_of_a_cancelled_call_are_dropped(waiting_server: Server, digits: UInt8Array) -> None:
    with connect(waiting_server) as stubs:
        calls = [stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:5]))) for _ in range(4)]
        wait_for(lambda: load(waiting_server) == (4, 20))
        calls.pop().cancel()
        wait_for(lambda: load(waiting_server) == (3, 15))
        full = stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:17])))
        assert len(full.result(60).scores) == 17
        assert [len(call.result(60).scores) for call in calls] == [5, 5, 5]
        wait_for(lambda: load(waiting_server) == (0, 0))
    assert ended(waiting_server, "Score", "CANCELLED") == 1
    assert value(waiting_server, "batch_size_sum", model="digits", direction="forward") == 32


def test_the_images_of_a_call_whose_deadline_has_passed_are_dropped(
    waiting_server: Server, digits: UInt8Array
) -> None:
    with connect(waiting_server) as stubs:
        images = raw(digits[:5])
        calls = [
            stubs.glow.Score.future(pb.ScoreRequest(images=images), timeout=0.5),
            stubs.glow.Encode.future(pb.EncodeRequest(images=images), timeout=0.5),
            stubs.glow.Sample(pb.SampleRequest(n=5), timeout=0.5),
        ]
        assert {call.code() for call in calls} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        wait_for(lambda: load(waiting_server) == (0, 0))
    for direction in ("forward", "reverse"):
        assert value(waiting_server, "batch_size_count", model="digits", direction=direction) == 0


def test_a_large_call_may_be_cancelled_at_any_moment(
    server: Server, stub: GlowServiceStub, digits: UInt8Array, rng: np.random.Generator
) -> None:
    images = np.concatenate([digits, digits])[:256]
    for _ in range(10):
        calls = [stub.Score.future(pb.ScoreRequest(images=raw(images))) for _ in range(4)]
        time.sleep(rng.uniform(0, 0.05))
        for call in calls:
            call.cancel()
        wait_for(lambda: load(server) == (0, 0))
    assert len(stub.Score(pb.ScoreRequest(images=raw(images))).scores) == 256


# Streams


def test_a_stream_of_samples_that_fails_drops_the_batches_that_were_drawn_ahead(
    run_server: RunServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch of four fails at once. The other two samples would wait for ever."""

    def fail(_engine: Engine, _latents: Float32Array, **_: bool) -> Reverse:
        raise RuntimeError("the device has failed")

    with (
        run_server(max_batch_size=4, instances=2, **WAITING) as server,
        connect(server) as stubs,
    ):
        monkeypatch.setattr(Engine, "reverse", fail)
        request = pb.SampleRequest(n=6, seed=0, temperature=0)
        code, message = refusal(lambda: list(stubs.glow.Sample(request, timeout=60)))
        assert code is grpc.StatusCode.INTERNAL, message
        wait_for(lambda: load(server) == (0, 0))


@pytest.mark.parametrize("end", ["cancelled", "late"])
def test_samples_that_wait_to_be_drawn_again_leave_with_their_call(
    run_server: RunServer, explosive_repository: Path, explosive_engine: Engine, end: str
) -> None:
    """The first batch of four is full and runs. Those that are drawn again are fewer, and would wait for ever."""
    seed = next(
        seed for seed in range(100) if attempts(explosive_engine, seed, 4, most=1).indices in ([0], [1])
    )
    with (
        run_server(repository=explosive_repository, max_batch_size=4, instances=1, **WAITING) as server,
        connect(server) as stubs,
    ):
        stream = stubs.glow.Sample(pb.SampleRequest(n=4, seed=seed), timeout=60 if end == "cancelled" else 2)
        wait_for(lambda: load(server) == (1, 3))
        if end == "cancelled":
            stream.cancel()
        else:
            assert refusal(lambda: next(stream))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_for(lambda: load(server) == (0, 0))


def test_a_stream_of_samples_may_be_cancelled_midway(server: Server, stub: GlowServiceStub) -> None:
    for taken in (1, 3):
        stream = stub.Sample(pb.SampleRequest(n=100_000, temperature=0))
        for _ in range(taken):
            next(stream)
        assert in_flight(server) == 1
        stream.cancel()
        wait_for(lambda: load(server) == (0, 0))
    assert len(draw(stub, n=40)) == 40


def test_a_stream_of_samples_that_nobody_reads_is_not_drawn_further(
    server: Server,
) -> None:
    """About 100 KiB of answers wait in the connection. All samples would be 6.4 MB."""

    def drawn() -> float:
        return value(server, "batch_size_sum", model="digits", direction="reverse")

    before = drawn()
    with connect(server, SMALL_WINDOW) as stubs:
        request = pb.SampleRequest(n=100_000, temperature=0, format=pb.IMAGE_FORMAT_RAW)
        stream = stubs.glow.Sample(request)
        next(stream)
        assert wait_until_still(drawn) - before < 50_000
        stream.cancel()
        wait_for(lambda: load(server) == (0, 0))
