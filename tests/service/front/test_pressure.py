"""More work than there is room for, callers that leave, and streams that nobody reads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from glowserve_service.server import Server
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from PIL import Image

import glowserve
from glowserve.images import UInt8Array
from glowserve.runtime.randomness import latents
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.wire import (
    COOL,
    draw,
    encoded,
    file_of,
    images_of,
    latent_tensor,
    nats,
    raw,
    refusal,
    wait_for,
)

RunServer = Callable[..., Any]

Float32Array = npt.NDArray[np.float32]


def value(server: Server, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(f"glowserve_{name}", labels) or 0


def load(server: Server) -> tuple[float, float]:
    """Calls in flight, and images that wait."""
    waiting = [
        value(server, "queue_length", model="digits", direction=direction)
        for direction in ("forward", "reverse")
    ]
    return value(server, "requests_in_flight"), sum(waiting)


def test_a_full_queue_refuses_some_and_answers_the_rest_right(
    run_server: Callable[..., Any], stub: GlowServiceStub, digits: UInt8Array
) -> None:
    expected = nats(stub.Score(pb.ScoreRequest(images=raw(digits))))
    answers: list[tuple[grpc.StatusCode, str]] = []

    def ask(first: int) -> None:
        request = pb.ScoreRequest(images=raw(digits[first : first + 12]))
        try:
            response = busy.Score(request)
        except grpc.RpcError as error:
            answers.append((error.code(), error.details()))
        else:
            answers.append((grpc.StatusCode.OK, ""))
            np.testing.assert_allclose(nats(response), expected[first : first + 12], rtol=1e-5)

    with (
        run_server(max_queue_size=16, max_images_per_call=16, max_batch_size=4, instances=1) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ThreadPoolExecutor(32) as pool,
    ):
        busy = GlowServiceStub(channel)
        for _ in range(20):
            list(pool.map(ask, range(160)))
            if len({code for code, _ in answers}) > 1:
                break
        wait_for(lambda: load(server) == (0, 0))
        ask(0)
    assert {code for code, _ in answers} == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all("try again later" in message for code, message in answers if code is not grpc.StatusCode.OK)
    assert answers[-1] == (grpc.StatusCode.OK, "")


def test_a_stream_that_has_begun_is_not_refused_midway(
    run_server: Callable[..., Any], stub: GlowServiceStub
) -> None:
    """Nor is an encoding whose second half finds a full queue."""
    expected = draw(stub, n=1000, seed=1, format=pb.IMAGE_FORMAT_RAW)
    rows = latent_tensor(latents(0, 0, 8, 64, COOL))
    codes: list[grpc.StatusCode] = []
    ended = threading.Event()

    def crowd() -> None:
        while not ended.is_set():
            try:
                busy.Decode(pb.DecodeRequest(latents=rows, format=pb.IMAGE_FORMAT_RAW))
                codes.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                codes.append(error.code())

    def patiently(call: Callable[[], Any]) -> Any:
        """Its answer, where it may be refused at first."""
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                time.sleep(0.01)

    with (
        run_server(max_queue_size=8, max_images_per_call=8, max_batch_size=8, instances=2) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ThreadPoolExecutor(6) as pool,
    ):
        busy = GlowServiceStub(channel)
        crowds = [pool.submit(crowd) for _ in range(6)]
        try:
            request = pb.SampleRequest(n=1000, seed=1, temperature=COOL, format=pb.IMAGE_FORMAT_RAW)

            def begun() -> tuple[Any, pb.SampleResponse]:
                stream = busy.Sample(request)
                return stream, next(stream)

            stream, first = patiently(begun)
            responses = [first, *stream]
            encoding = pb.EncodeRequest(images=raw(expected[:8]))
            encodings = [patiently(lambda: busy.Encode(encoding)) for _ in range(20)]
        finally:
            ended.set()
            for each in crowds:
                each.result()
    np.testing.assert_array_equal(
        np.concatenate([images_of(response.images) for response in responses]), expected
    )
    assert {len(response.mismatched_values) for response in encodings} == {8}
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_pictures_that_wait_to_be_prepared_are_bounded_too(run_server: Callable[..., Any]) -> None:
    slow = file_of(Image.new("1", (4000, 4000)), "PNG")
    request = pb.ScoreRequest(images=encoded(slow, slow))
    with (
        run_server(max_queue_size=4, max_images_per_call=4, max_batch_size=4) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = GlowServiceStub(channel)
        calls = [stub.Score.future(request) for _ in range(20)]
        codes = [call.code() for call in calls]
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        refused = next(call for call in calls if call.code() is not grpc.StatusCode.OK)
        assert "try again later" in refused.details()
        assert len(stub.Score(request).scores) == 2


@pytest.fixture
def patient_server(run_server: Callable[..., Any]) -> Iterator[Server]:
    """A server that holds images back until a batch of 32 is full: calls wait for as long as a test needs."""
    with run_server(max_queue_delay_ms=600_000.0, drain_seconds=0.0) as server:
        yield server


def test_what_a_caller_cancels_is_dropped(patient_server: Server, digits: UInt8Array) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{patient_server.port}") as channel:
        stub = GlowServiceStub(channel)
        calls = [stub.Score.future(pb.ScoreRequest(images=raw(digits[:5]))) for _ in range(4)]
        wait_for(lambda: load(patient_server) == (4, 20))
        calls.pop().cancel()
        wait_for(lambda: load(patient_server) == (3, 15))
        full = stub.Score.future(pb.ScoreRequest(images=raw(digits[:17])))
        assert len(full.result(60).scores) == 17
        assert [len(call.result(60).scores) for call in calls] == [5, 5, 5]
        wait_for(lambda: load(patient_server) == (0, 0))
    assert value(patient_server, "requests_total", method="Score", model="digits", code="CANCELLED") == 1
    assert value(patient_server, "batch_size_sum", model="digits", direction="forward") == 32


def test_what_is_past_its_deadline_is_dropped(patient_server: Server, digits: UInt8Array) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{patient_server.port}") as channel:
        stub = GlowServiceStub(channel)
        for call in (
            lambda: stub.Score(pb.ScoreRequest(images=raw(digits[:5])), timeout=0.5),
            lambda: stub.Encode(pb.EncodeRequest(images=raw(digits[:5])), timeout=0.5),
            lambda: list(stub.Sample(pb.SampleRequest(n=5), timeout=0.5)),
        ):
            assert refusal(call)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_for(lambda: load(patient_server) == (0, 0))
    for direction in ("forward", "reverse"):
        assert value(patient_server, "batch_size_count", model="digits", direction=direction) == 0


def test_a_stream_that_fails_takes_what_it_drew_ahead_with_it(run_server: Callable[..., Any]) -> None:
    """The first four fail at once; the other two would wait for company for ever."""
    settings = {"max_batch_size": 4, "instances": 2, "max_queue_delay_ms": 600_000.0, "drain_seconds": 0.0}
    with (
        run_server(**settings) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        request = pb.SampleRequest(n=6, seed=0, temperature=1e30)
        code, message = refusal(lambda: list(GlowServiceStub(channel).Sample(request, timeout=60)))
        assert code is grpc.StatusCode.FAILED_PRECONDITION, message
        wait_for(lambda: load(server) == (0, 0))


def test_a_large_call_may_be_cancelled_midway(
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


def test_a_stream_may_be_left_midway(server: Server, stub: GlowServiceStub) -> None:
    for taken in (1, 3):
        stream = stub.Sample(pb.SampleRequest(n=100_000, temperature=0))
        for _ in range(taken):
            next(stream)
        assert load(server)[0] == 1
        stream.cancel()
        wait_for(lambda: load(server) == (0, 0))
    assert len(draw(stub, n=40)) == 40


def test_a_stream_that_nobody_reads_does_not_run_ahead(run_server: Callable[..., Any]) -> None:
    """gRPC buffers some megabytes; all of it would be 64 MB."""
    with (
        run_server(max_samples_per_call=1_000_000, max_batch_size=1000) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        request = pb.SampleRequest(n=1_000_000, temperature=0, format=pb.IMAGE_FORMAT_RAW)
        stream = GlowServiceStub(channel).Sample(request)
        next(stream)
        before, now = -1.0, 0.0
        while now != before:
            time.sleep(0.5)
            before, now = now, value(server, "batch_size_sum", model="digits", direction="reverse")
        assert now < 500_000
        stream.cancel()
        wait_for(lambda: load(server) == (0, 0))


def test_streams_that_have_begun_are_never_refused(run_server: RunServer) -> None:
    """Many streams at once on a small queue: each is refused before its first image, or ends well."""
    with run_server(max_queue_size=64, max_images_per_call=32, max_batch_size=32) as running:
        target = f"127.0.0.1:{running.port}"

        async def draw(client: glowserve.AsyncClient) -> int:
            n = 0
            try:
                async for samples in client.iter_samples(320, seed=1, temperature=COOL):
                    n += len(samples)
            except glowserve.RequestError as error:
                if error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
            return n

        async def main() -> list[int]:
            async with glowserve.AsyncClient(target) as client:
                return await asyncio.gather(*[draw(client) for _ in range(20)])

        drawn = asyncio.run(main())
        assert set(drawn) <= {0, 320}
        assert 320 in drawn
        assert 0 in drawn


def test_an_open_stream_of_reflection_does_not_hold_up_the_end(run_server: RunServer) -> None:
    ended = threading.Event()

    def requests() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        ended.wait(60)

    with run_server(drain_seconds=60) as running:
        channel = grpc.insecure_channel(f"127.0.0.1:{running.port}")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        answers = stub.ServerReflectionInfo(requests())  # a call ends with the last reference to it
        assert next(answers).HasField("list_services_response")
        began = time.monotonic()
    assert time.monotonic() - began < 30
    assert refusal(lambda: next(answers))[0] is grpc.StatusCode.UNAVAILABLE
    ended.set()
    channel.close()
