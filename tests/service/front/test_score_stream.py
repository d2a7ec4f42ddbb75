"""ScoreStream: order, errors, and what a stream may hold."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from glowserve.images import UInt8Array, encode_png
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.wire import SMALL_WINDOW, raw, wait_for

RunServer = Callable[..., Any]
StartServer = Callable[..., Any]

FOREVER = 600_000.0
QUEUE = {"model": "digits", "direction": "forward"}


def encoded(images: UInt8Array) -> pb.Images:
    return pb.Images(encoded=pb.EncodedImages(data=[encode_png(image) for image in images]))


def request_of(images: UInt8Array, **fields: Any) -> pb.ScoreRequest:
    return pb.ScoreRequest(images=raw(images), **fields)


@contextmanager
def connected(server: Server, options: Any = None) -> Iterator[GlowServiceStub]:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", options) as channel:
        yield GlowServiceStub(channel)


@pytest.fixture
def stub(server: Server) -> Iterator[GlowServiceStub]:
    with connected(server) as stub:
        yield stub


def value(server: Server, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(f"glowserve_{name}", labels) or 0.0


def ended(server: Server, code: str) -> float:
    return value(server, "requests_total", method="ScoreStream", model="digits", code=code)


def ending(answers: Iterator[Any]) -> tuple[list[Any], grpc.RpcError]:
    """What a stream answered, and what it ended with."""
    found: list[Any] = []
    with pytest.raises(grpc.RpcError) as caught:
        found.extend(answers)
    return found, caught.value


class Endless:
    """The same request again and again, until it is released; counts how many gRPC has taken."""

    def __init__(self, request: pb.ScoreRequest) -> None:
        self.request = request
        self.taken = 0
        self.last = threading.Event()

    def __iter__(self) -> Iterator[pb.ScoreRequest]:
        while not self.last.is_set():
            self.taken += 1
            yield self.request


# Answers


def test_answers_are_those_of_score_to_the_bit_in_the_order_of_the_requests(
    run_server: RunServer, digits: UInt8Array
) -> None:
    """In batches of one image, so that no bit depends on the company."""
    sizes = [1, 40, 1, 7, 2, 30, 1, 1, 64, 3]
    starts = list(itertools.accumulate(sizes, initial=0))
    requests = [
        pb.ScoreRequest(
            model=pb.ModelSpec(name="digits", version=i % 2),
            images=(raw if i % 3 else encoded)(digits[start : start + size]),
            seed=None if i == 4 else i,
        )
        for i, (start, size) in enumerate(zip(starts, sizes, strict=False))
    ]
    with run_server(max_batch_size=1) as server, connected(server) as stub:
        streamed = list(stub.ScoreStream(iter(requests), timeout=60))
        assert streamed == [stub.Score(request) for request in requests]
    assert [len(answer.scores) for answer in streamed] == sizes


def test_a_stream_without_requests_ends_well(server: Server, stub: GlowServiceStub) -> None:
    before = value(server, "requests_total", method="ScoreStream", model="", code="OK")
    assert list(stub.ScoreStream(iter(()), timeout=60)) == []
    assert value(server, "requests_total", method="ScoreStream", model="", code="OK") == before + 1


def test_an_answer_comes_before_the_next_request_is_sent(stub: GlowServiceStub, digits: UInt8Array) -> None:
    turns = threading.Semaphore(1)

    def requests() -> Iterator[pb.ScoreRequest]:
        for i in range(5):
            assert turns.acquire(timeout=60)
            yield request_of(digits[i : i + 1])

    for _ in stub.ScoreStream(requests(), timeout=60):
        turns.release()


def test_requests_of_a_stream_keep_each_other_company(run_server: RunServer, digits: UInt8Array) -> None:
    """None would be answered within the test, were they scored one after the other."""
    with run_server(max_batch_size=16, max_queue_delay_ms=FOREVER) as server, connected(server) as stub:
        requests = [request_of(digits[i : i + 1]) for i in range(160)]
        assert len(list(stub.ScoreStream(iter(requests), timeout=60))) == 160
        assert value(server, "batch_size_count", **QUEUE) == 10


def test_a_stream_is_counted_logged_and_named_as_one_call(
    run_server: RunServer, digits: UInt8Array, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with run_server() as server, connected(server) as stub:
        requests = [request_of(digits[:5]), request_of(digits[:8]), request_of(digits[:1])]
        call = stub.ScoreStream(iter(requests), metadata=[("x-request-id", "bulk-1")], timeout=60)
        assert len(list(call)) == 3
        assert ("x-request-id", "bulk-1") in call.trailing_metadata()
        assert (ended(server, "OK"), value(server, "requests_in_flight")) == (1, 0)
        labels = {"model": "digits", "method": "ScoreStream"}
        assert value(server, "preparation_seconds_count", **labels) == 1
        assert value(server, "not_finite_images_total", **labels) == 0
    (line,) = [record for record in caplog.records if "ScoreStream" in record.message]
    assert "ScoreStream of digits: OK, 14 images in " in line.message


# Errors


@pytest.mark.parametrize("under_way", ["alone", "together"])
@pytest.mark.parametrize(
    ("bad", "code", "message", "field"),
    [
        (
            pb.ScoreRequest(images=pb.Images(encoded={"data": [b"?"]})),
            grpc.StatusCode.INVALID_ARGUMENT,
            "requests[3]: images.encoded.data[0]: 1 bytes are not a picture",
            "requests[3].images.encoded.data[0]",
        ),
        (
            pb.ScoreRequest(),
            grpc.StatusCode.INVALID_ARGUMENT,
            "requests[3]: images is empty",
            "requests[3].images",
        ),
        (
            pb.ScoreRequest(images=raw(np.zeros((257, 8, 8, 1), np.uint8))),
            grpc.StatusCode.INVALID_ARGUMENT,
            "requests[3]: images.tensor.shape[0]: 257 images; a call takes 1 to 256",
            "requests[3].images.tensor.shape[0]",
        ),
        (
            pb.ScoreRequest(model=pb.ModelSpec(name="nobody"), images=raw(np.zeros((1, 8, 8, 1), np.uint8))),
            grpc.StatusCode.NOT_FOUND,
            "requests[3]: model.name 'nobody' is not served",
            None,
        ),
        (
            b"\xff",
            grpc.StatusCode.INVALID_ARGUMENT,
            "requests[3]: the message is not one that ScoreStream takes",
            "requests[3]",
        ),
    ],
)
def test_a_bad_request_ends_the_stream_after_the_answers_before_it(
    server: Server,
    digits: UInt8Array,
    bad: Any,
    code: grpc.StatusCode,
    message: str,
    field: str | None,
    under_way: str,
) -> None:
    turns = threading.Semaphore(100 if under_way == "together" else 1)
    requests = [request_of(digits[:5], seed=i) for i in range(6)]
    messages = [request.SerializeToString() for request in requests]
    messages[3] = bad if isinstance(bad, bytes) else bad.SerializeToString()

    def sent() -> Iterator[bytes]:
        for each in messages:
            assert turns.acquire(timeout=60)
            yield each

    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.stream_stream("/glowserve.v1.GlowService/ScoreStream")(sent(), timeout=60)

        def seeds() -> Iterator[int]:
            for data in call:
                yield pb.ScoreResponse.FromString(data).seed
                turns.release()

        found, error = ending(seeds())
        turns.release()  # to whoever still waits to send
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert found == [0, 1, 2]
    assert error.code() is code
    assert error.details().startswith(message)
    fields = [
        violation.field
        for packed in rpc_status.from_call(error).details
        if packed.Is(error_details_pb2.BadRequest.DESCRIPTOR)
        for violation in error_details_pb2.BadRequest.FromString(packed.value).field_violations
    ]
    assert fields == ([field] if field else [])
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    wait_for(lambda: value(server, "requests_in_flight") == 0)


def test_a_stream_is_refused_at_its_beginning_or_not_at_all(
    run_server: RunServer, digits: UInt8Array
) -> None:
    """The queue holds 64 images: the first request of a stream is turned away from a full one, the second is not."""
    settings = {"max_queue_size": 64, "max_images_per_call": 64, "max_batch_size": 64}
    with (
        run_server(**settings, max_queue_delay_ms=1500) as server,
        connected(server) as stub,
        ThreadPoolExecutor() as pool,
    ):
        fills = pool.submit(stub.Score, request_of(digits[:60]))
        wait_for(lambda: value(server, "queue_length", **QUEUE) == 60)
        found, error = ending(stub.ScoreStream(iter([request_of(digits[:10])] * 3), timeout=60))
        assert (found, error.code()) == ([], grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert error.details().startswith("requests[0]: 60 images wait already")
        assert len(fills.result(60).scores) == 60
        requests = [request_of(digits[:48]) for _ in range(6)]
        assert len(list(stub.ScoreStream(iter(requests), timeout=60))) == 6
        assert value(server, "dropped_images_total", **QUEUE, cause="queue_full") == 10


# What a stream holds


@pytest.mark.parametrize("images_each", [1, 8, 64])
def test_no_more_images_are_under_way_than_a_call_may_bring(
    run_server: RunServer, digits: UInt8Array, images_each: int
) -> None:
    settings = {"max_images_per_call": 64, "max_batch_size": 1000, "max_queue_delay_ms": FOREVER}
    with run_server(**settings, drain_seconds=0) as server, connected(server) as stub:
        endless = Endless(request_of(digits[:images_each]))
        call = stub.ScoreStream(iter(endless))
        wait_for(lambda: value(server, "queue_length", **QUEUE) == 64)
        time.sleep(0.3)
        assert value(server, "queue_length", **QUEUE) == 64
        call.cancel()
        endless.last.set()
        wait_for(lambda: value(server, "queue_length", **QUEUE) == 0)


def test_no_more_bytes_are_under_way_than_a_call_may_bring(run_server: RunServer, digits: UInt8Array) -> None:
    """Pictures of some 300 KiB, of which four are more than a message of 1 MiB."""
    noise = np.random.default_rng(0).integers(0, 256, (560, 560, 1), np.uint8)
    picture = pb.ScoreRequest(images=encoded(noise[None]))
    assert 2**20 / 4 < picture.ByteSize() < 2**20 / 3
    settings = {"max_message_mib": 1, "max_batch_size": 1000, "max_queue_delay_ms": FOREVER}
    with run_server(**settings, drain_seconds=0) as server, connected(server) as stub:
        endless = Endless(picture)
        call = stub.ScoreStream(iter(endless))
        wait_for(lambda: value(server, "queue_length", **QUEUE) == 4)
        time.sleep(0.5)
        assert value(server, "queue_length", **QUEUE) == 4
        call.cancel()
        endless.last.set()


def test_a_client_that_takes_no_answers_is_read_no_further_and_loses_none(
    run_server: RunServer, digits: UInt8Array
) -> None:
    """The transport holds some answers; when it is full, nothing runs and nothing is read until one is taken."""
    with run_server(max_images_per_call=64) as server, connected(server, SMALL_WINDOW) as stub:
        endless = Endless(request_of(digits[:64]))
        call = stub.ScoreStream(iter(endless))
        next(call)

        def state() -> tuple[int, float]:
            return endless.taken, value(server, "batch_size_sum", **QUEUE)

        def still() -> bool:
            before = state()
            time.sleep(0.5)
            return state() == before

        wait_for(still)
        stuck, ran = state()
        time.sleep(1)
        assert state() == (stuck, ran)
        assert value(server, "queue_length", **QUEUE) == 0
        assert ran / 64 < 200
        assert value(server, "requests_in_flight") == 1
        assert len(stub.Score(request_of(digits[:3])).scores) == 3  # others are served meanwhile
        for _ in range(2 * stuck):
            next(call)
        assert endless.taken > stuck
        endless.last.set()
        assert 1 + 2 * stuck + sum(1 for _ in call) == endless.taken
        assert ended(server, "OK") == 1


def test_a_model_is_held_for_a_request_and_not_for_the_stream(
    run_server: RunServer, digits: UInt8Array
) -> None:
    """A stream of hours would keep every version in memory that came and went."""
    with run_server(admin="on") as server, connected(server) as stub:
        turns = threading.Semaphore(1)

        def requests() -> Iterator[pb.ScoreRequest]:
            while turns.acquire(timeout=60):
                yield request_of(digits[:1])

        call = stub.ScoreStream(requests())
        next(call)
        model = server._manager._models.find("digits", 0)
        wait_for(lambda: model._holders == 0)
        stub.UnloadModel(pb.UnloadModelRequest(name="digits"), timeout=60)
        turns.release()
        found, error = ending(call)
        assert (found, error.code()) == ([], grpc.StatusCode.NOT_FOUND)
        assert error.details().startswith("requests[1]: model.name '' is not served")


# Ends


def test_cancelling_a_stream_drops_all_that_is_under_way(run_server: RunServer, digits: UInt8Array) -> None:
    settings = {"max_batch_size": 1000, "max_queue_delay_ms": FOREVER}
    with run_server(**settings, drain_seconds=0) as server, connected(server) as stub:
        call = stub.ScoreStream(iter([request_of(digits[:20])] * 5))
        wait_for(lambda: value(server, "queue_length", **QUEUE) == 100)
        call.cancel()
        wait_for(lambda: value(server, "requests_in_flight") == 0)
        assert value(server, "queue_length", **QUEUE) == 0
        assert ended(server, "CANCELLED") == 1
        wait_for(lambda: value(server, "dropped_images_total", **QUEUE, cause="cancelled") == 100)
        assert server._manager._models.find("digits", 0)._holders == 0


def test_a_stream_ends_at_its_deadline(run_server: RunServer, digits: UInt8Array) -> None:
    settings = {"max_batch_size": 1000, "max_queue_delay_ms": FOREVER}
    with run_server(**settings, drain_seconds=0) as server, connected(server) as stub:
        began = time.monotonic()
        found, error = ending(stub.ScoreStream(iter([request_of(digits[:20])] * 5), timeout=0.5))
        assert (found, error.code()) == ([], grpc.StatusCode.DEADLINE_EXCEEDED)
        assert time.monotonic() - began < 30
        wait_for(lambda: value(server, "requests_in_flight") == 0)
        assert value(server, "queue_length", **QUEUE) == 0
        wait_for(lambda: ended(server, "DEADLINE_EXCEEDED") == 1)


def test_a_stopping_server_answers_what_it_has_read(start_server: StartServer, digits: UInt8Array) -> None:
    def requests() -> Iterator[pb.ScoreRequest]:
        yield request_of(digits[:3], seed=7)
        yield from iter(lambda: time.sleep(0.05) or request_of(digits[:1], seed=8), None)

    flags = ("--drain-seconds", "600", "--max-queue-delay-ms", "1500", "--max-batch-size", "64")
    with start_server(*flags) as (process, target, _), grpc.insecure_channel(target) as channel:
        call = GlowServiceStub(channel).ScoreStream(requests())
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        found, error = ending(call)
        _, errors = process.communicate(timeout=60)
    assert (error.code(), error.details()) == (
        grpc.StatusCode.UNAVAILABLE,
        "the server is stopping; try another",
    )
    assert [answer.seed for answer in found] == [7] + [8] * (len(found) - 1)
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert "Task" not in errors


def test_a_stream_needs_the_right_to_infer(run_server: RunServer, digits: UInt8Array, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("app " + "a" * 32 + "\noperator " + "b" * 32 + " admin\n")
    with run_server(tokens=tokens) as server, connected(server) as stub:
        endings = {}
        for token in ("a", "b", "c"):
            metadata = [("authorization", f"Bearer {token * 32}")]
            call = stub.ScoreStream(iter([request_of(digits[:2])]), metadata=metadata, timeout=60)
            try:
                endings[token] = len(list(call))
            except grpc.RpcError as error:
                endings[token] = error.code()
        assert endings == {
            "a": 1,
            "b": grpc.StatusCode.PERMISSION_DENIED,
            "c": grpc.StatusCode.UNAUTHENTICATED,
        }
