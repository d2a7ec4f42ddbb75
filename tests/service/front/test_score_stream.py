"""ScoreStream: the order of its answers, its errors, and how it ends."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from glowserve.images import UInt8Array, encode_png
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.servers import RunServer
from tests.service.engines import held
from tests.service.marks import reads_call_lines
from tests.service.metrics import ended, in_flight, leases, queue_length, value
from tests.service.stubs import SERVING, connect
from tests.service.wire import encoded, raw, wait_for

FOREVER = 600_000.0
"""Milliseconds that images may wait for more: longer than a test."""


def request_of(images: UInt8Array, **fields: Any) -> pb.ScoreRequest:
    return pb.ScoreRequest(images=raw(images), **fields)


def outcome(responses: Iterator[Any]) -> tuple[list[Any], grpc.RpcError]:
    """The responses of a stream that must fail, and its error."""
    found: list[Any] = []
    with pytest.raises(grpc.RpcError) as caught:
        found.extend(responses)
    return found, caught.value


# Answers


def test_answers_are_those_of_score_to_the_bit_in_the_order_of_the_requests(
    run_server: RunServer, digits: UInt8Array
) -> None:
    """In batches of one image: so no bit depends on the other images of a batch."""
    sizes = [1, 40, 1, 7, 2, 30, 1, 1, 64, 3]
    starts = list(itertools.accumulate(sizes, initial=0))

    def images(i: int) -> pb.Images:
        array = digits[starts[i] : starts[i] + sizes[i]]
        return raw(array) if i % 3 else encoded(*[encode_png(image) for image in array])

    requests = [
        pb.ScoreRequest(
            model=pb.ModelSpec(name="digits", version=i % 2), images=images(i), seed=None if i == 4 else i
        )
        for i in range(len(sizes))
    ]
    with run_server(max_batch_size=1) as server, connect(server) as stubs:
        streamed = list(stubs.glow.ScoreStream(iter(requests), timeout=60))
        assert streamed == [stubs.glow.Score(request) for request in requests]
    assert [len(response.scores) for response in streamed] == sizes


def test_a_stream_without_requests_ends_well(server: Server, stub: GlowServiceStub) -> None:
    before = ended(server, "ScoreStream", "OK", model="")
    assert list(stub.ScoreStream(iter(()), timeout=60)) == []
    assert ended(server, "ScoreStream", "OK", model="") == before + 1


def test_an_answer_comes_before_the_next_request_is_sent(stub: GlowServiceStub, digits: UInt8Array) -> None:
    turns = threading.Semaphore(1)

    def requests() -> Iterator[pb.ScoreRequest]:
        for i in range(5):
            assert turns.acquire(timeout=60)
            yield request_of(digits[i : i + 1])

    for _ in stub.ScoreStream(requests(), timeout=60):
        turns.release()


@pytest.mark.parametrize("instances", [1, 2])
def test_requests_of_a_stream_share_batches(
    run_server: RunServer, digits: UInt8Array, instances: int
) -> None:
    """The test would not end if the requests were scored one after the other."""
    settings = {"max_batch_size": 16, "instances": instances, "max_queue_delay_ms": FOREVER}
    with run_server(**settings, drain_seconds=0) as server, connect(server) as stubs:
        requests = [request_of(digits[i : i + 1]) for i in range(160)]
        assert len(list(stubs.glow.ScoreStream(iter(requests), timeout=60))) == 160
        assert value(server, "batch_size_count", model="digits", direction="forward") == 10


@reads_call_lines
def test_a_stream_is_counted_and_logged_as_one_call(
    run_server: RunServer, digits: UInt8Array, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with run_server() as server, connect(server) as stubs:
        requests = [request_of(digits[:n]) for n in (5, 8, 1)]
        call = stubs.glow.ScoreStream(iter(requests), metadata=[("x-request-id", "bulk-1")], timeout=60)
        assert len(list(call)) == 3
        assert ("x-request-id", "bulk-1") in call.trailing_metadata()
        assert (ended(server, "ScoreStream", "OK"), in_flight(server)) == (1, 0)
        labels = {"model": "digits", "method": "ScoreStream"}
        assert value(server, "preparation_seconds_count", **labels) == 1
        assert value(server, "not_finite_images_total", **labels) == 0
    (line,) = [record.message for record in caplog.records if "ScoreStream" in record.message]
    assert "ScoreStream of digits: OK, 14 images in " in line


# Errors

ONE_IMAGE = raw(np.zeros((1, 8, 8, 1), np.uint8))
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("sent", ["one after the other", "together"])
@pytest.mark.parametrize(
    ("bad", "code", "message", "field"),
    [
        (
            pb.ScoreRequest(images=encoded(b"?")).SerializeToString(),
            INVALID,
            "requests[3]: images.encoded.data[0]: 1 bytes are not a picture",
            "requests[3].images.encoded.data[0]",
        ),
        (b"", INVALID, "requests[3]: images is empty", "requests[3].images"),
        (
            request_of(np.zeros((257, 8, 8, 1), np.uint8)).SerializeToString(),
            INVALID,
            "requests[3]: images.tensor.shape[0]: 257 images; a call takes 1 to 256",
            "requests[3].images.tensor.shape[0]",
        ),
        (
            pb.ScoreRequest(model=pb.ModelSpec(name="nobody"), images=ONE_IMAGE).SerializeToString(),
            grpc.StatusCode.NOT_FOUND,
            "requests[3]: model.name 'nobody' is not served",
            None,
        ),
        (
            b"\xff",
            INVALID,
            "requests[3]: the message is not one that ScoreStream takes",
            "requests[3]",
        ),
    ],
    ids=["no picture", "no images", "too many images", "unknown model", "no message"],
)
def test_a_bad_request_ends_the_stream_after_the_answers_before_it(
    server: Server,
    digits: UInt8Array,
    bad: bytes,
    code: grpc.StatusCode,
    message: str,
    field: str | None,
    sent: str,
) -> None:
    turns = threading.Semaphore(100 if sent == "together" else 1)
    messages = [request_of(digits[:5], seed=i).SerializeToString() for i in range(6)]
    messages[3] = bad

    def requests() -> Iterator[bytes]:
        for each in messages:
            assert turns.acquire(timeout=60)
            yield each

    with connect(server) as stubs:
        call = stubs.channel.stream_stream("/glowserve.v1.GlowService/ScoreStream")(requests(), timeout=60)

        def seeds() -> Iterator[int]:
            for data in call:
                yield pb.ScoreResponse.FromString(data).seed
                turns.release()

        found, error = outcome(seeds())
        turns.release()  # the generator of requests may still wait for its turn
        assert stubs.status() == SERVING
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
    wait_for(lambda: in_flight(server) == 0)


def test_only_the_first_request_of_a_stream_is_refused_when_the_queue_is_full(
    run_server: RunServer, digits: UInt8Array
) -> None:
    """The queue has room for 64 images, and the engine is held while it fills."""
    settings = {"max_queue_size": 64, "max_images_per_call": 64, "max_batch_size": 64, "instances": 1}
    with run_server(**settings) as server, connect(server) as stubs, held() as go_on:
        running = stubs.glow.Score.future(request_of(digits[:64]))
        wait_for(lambda: value(server, "batch_size_sum", model="digits", direction="forward") == 64)
        waiting = stubs.glow.Score.future(request_of(digits[:60]))
        wait_for(lambda: queue_length(server) == 60)
        found, error = outcome(stubs.glow.ScoreStream(iter([request_of(digits[:10])] * 3), timeout=60))
        assert (found, error.code()) == ([], grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert error.details().startswith("requests[0]: 60 images wait already")
        waiting.cancel()
        wait_for(lambda: queue_length(server) == 0)
        stream = stubs.glow.ScoreStream(iter([request_of(digits[:48])] * 6), timeout=60)
        wait_for(lambda: queue_length(server) == 2 * 48)
        go_on.set()
        assert len(list(stream)) == 6
        assert len(running.result(60).scores) == 64
        dropped = {"model": "digits", "direction": "forward", "cause": "queue_full"}
        assert value(server, "dropped_images_total", **dropped) == 10


# Ends


def test_cancelling_a_stream_drops_all_its_images(run_server: RunServer, digits: UInt8Array) -> None:
    settings = {"max_batch_size": 1000, "max_queue_delay_ms": FOREVER}
    with run_server(**settings, drain_seconds=0) as server, connect(server) as stubs:
        call = stubs.glow.ScoreStream(iter([request_of(digits[:20])] * 5))
        wait_for(lambda: queue_length(server) == 100)
        call.cancel()
        wait_for(lambda: in_flight(server) == 0)
        assert queue_length(server) == 0
        assert ended(server, "ScoreStream", "CANCELLED") == 1
        dropped = {"model": "digits", "direction": "forward", "cause": "cancelled"}
        wait_for(lambda: value(server, "dropped_images_total", **dropped) == 100)
        assert leases(server) == 0


def test_a_stream_ends_at_its_deadline(run_server: RunServer, digits: UInt8Array) -> None:
    settings = {"max_batch_size": 1000, "max_queue_delay_ms": FOREVER}
    with run_server(**settings, drain_seconds=0) as server, connect(server) as stubs:
        began = time.monotonic()
        stream = stubs.glow.ScoreStream(iter([request_of(digits[:20])] * 5), timeout=0.5)
        found, error = outcome(stream)
        assert (found, error.code()) == ([], grpc.StatusCode.DEADLINE_EXCEEDED)
        assert time.monotonic() - began < FOREVER / 1000 / 10
        wait_for(lambda: in_flight(server) == 0)
        assert queue_length(server) == 0
        wait_for(lambda: ended(server, "ScoreStream", "DEADLINE_EXCEEDED") == 1)
