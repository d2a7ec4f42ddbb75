"""ScoreSet: one answer to a stream of requests, what it may hold in the service, and how it ends without one."""

from __future__ import annotations

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
from glowserve.runtime import image_set
from glowserve.scores import sets
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.servers import RunServer, StartServer
from tests.service.engines import held
from tests.service.marks import patches_the_front, reads_call_lines
from tests.service.metrics import ended, in_flight, leases, queue_length, value
from tests.service.stubs import connect
from tests.service.wire import encoded, raw, refusal, wait_for

STUCK: dict[str, Any] = {"max_batch_size": 1000, "max_queue_delay_ms": 600_000.0, "drain_seconds": 0}
"""Images wait for a batch that is never full."""
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def part(images: UInt8Array, **model: Any) -> pb.ScoreSetRequest:
    return pb.ScoreSetRequest(model=pb.ModelSpec(**model), images=raw(images))


class Endless:
    """The same request again and again, until `last` is set; counts how many gRPC has taken."""

    def __init__(self, request: pb.ScoreSetRequest) -> None:
        self.request = request
        self.taken = 0
        self.last = threading.Event()

    def __iter__(self) -> Iterator[pb.ScoreSetRequest]:
        while not self.last.is_set():
            self.taken += 1
            yield self.request


# Answers


def test_the_answer_does_not_depend_on_how_the_images_are_sent(
    run_server: RunServer, digits: UInt8Array
) -> None:
    """In batches of one image: so no bit depends on the other images of a batch."""
    pictures = encoded(*[encode_png(image) for image in digits[7:40]])
    with run_server(max_batch_size=1) as server, connect(server) as stubs:
        whole = stubs.glow.ScoreSet(iter([part(digits[:90])]), timeout=60)
        parts = [
            part(digits[:1], name="digits"),
            part(digits[1:7], version=1),
            pb.ScoreSetRequest(images=pictures),
            part(digits[40:90][::-1]),
        ]
        assert stubs.glow.ScoreSet(iter(parts), timeout=60).p_value == whole.p_value
    assert whole.n == 90
    assert whole.p_value > 0.001


def test_a_set_that_does_not_belong_is_found(stub: GlowServiceStub, digits: UInt8Array) -> None:
    found = stub.ScoreSet(iter([part(255 - digits[:20])]), timeout=60)
    assert found.p_value == found.resolution == 1e-4


@reads_call_lines
def test_a_set_is_counted_and_logged_as_one_call_and_its_images_as_traffic(
    run_server: RunServer, digits: UInt8Array, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with run_server() as server, connect(server) as stubs:
        stubs.glow.ScoreSet(iter([part(digits[:n]) for n in (5, 8, 1)]), timeout=60)
        assert (ended(server, "ScoreSet", "OK"), in_flight(server)) == (1, 0)
        labels = {"model": "digits", "method": "ScoreSet"}
        assert value(server, "preparation_seconds_count", **labels) == 1
        assert value(server, "anomaly_p_value_count", model="digits", version="1") == 14
        assert value(server, "received_bytes") == 0
    (line,) = [record.message for record in caplog.records if "ScoreSet" in record.message]
    assert "ScoreSet of digits: OK, 14 images in " in line


@patches_the_front
def test_other_calls_are_answered_while_a_set_is_compared(
    run_server: RunServer, digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets, "EXCHANGES", 10**9)  # it would take hours
    with run_server(drain_seconds=0) as server, connect(server) as stubs:
        call = stubs.glow.ScoreSet.future(iter([part(digits[:100])]))
        wait_for(lambda: value(server, "anomaly_p_value_count", model="digits", version="1") == 100)
        began = time.monotonic()
        for _ in range(5):
            stubs.glow.Score(pb.ScoreRequest(images=raw(digits[:1])), timeout=60)
        assert time.monotonic() - began < 5
        assert in_flight(server) == 1
        call.cancel()
        wait_for(lambda: in_flight(server) == 0)
        assert ended(server, "ScoreSet", "CANCELLED") == 1


# Errors


@pytest.mark.parametrize(
    ("requests", "code", "message", "field"),
    [
        ([], INVALID, "images: the set has 0; a set has 2 to 100000", "images"),
        ([b"1"], INVALID, "images: the set has 1; a set has 2 to 100000", "images"),
        ([b"1", b""], INVALID, "requests[1]: images is empty", "requests[1].images"),
        ([b"1", b"\xff"], INVALID, "requests[1]: the message is not one that ScoreSet takes", "requests[1]"),
        (
            [b"1", pb.ScoreSetRequest(images=encoded(b"?")).SerializeToString()],
            INVALID,
            "requests[1]: images.encoded.data[0]: 1 bytes are not a picture",
            "requests[1].images.encoded.data[0]",
        ),
        (
            [b"1", b"1", part(np.zeros((1, 8, 8, 1), np.uint8), name="other").SerializeToString()],
            INVALID,
            "requests[2]: model.name is 'other'; this set began with digits version 1",
            "requests[2].model.name",
        ),
        (
            [part(np.zeros((257, 8, 8, 1), np.uint8)).SerializeToString()],
            INVALID,
            "requests[0]: images.tensor.shape[0]: 257 images; a call takes 1 to 256",
            "requests[0].images.tensor.shape[0]",
        ),
        (
            [part(np.zeros((1, 8, 8, 1), np.uint8), name="nobody").SerializeToString()],
            grpc.StatusCode.NOT_FOUND,
            "requests[0]: model.name 'nobody' is not served",
            None,
        ),
    ],
)
def test_a_bad_request_is_named(
    server: Server,
    digits: UInt8Array,
    requests: list[bytes],
    code: grpc.StatusCode,
    message: str,
    field: str | None,
) -> None:
    good = part(digits[:1]).SerializeToString()
    messages = [good if each == b"1" else each for each in requests]
    with connect(server) as stubs, pytest.raises(grpc.RpcError) as caught:
        stubs.channel.stream_unary("/glowserve.v1.GlowService/ScoreSet")(iter(messages), timeout=60)
    error = caught.value
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


def test_a_set_is_refused_when_the_queue_is_full_and_never_after_its_first_request(
    run_server: RunServer, digits: UInt8Array
) -> None:
    settings = {"max_queue_size": 64, "max_images_per_call": 64, "max_batch_size": 64, "instances": 1}
    with run_server(**settings) as server, connect(server) as stubs, held() as go_on:
        running = stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:64])))
        wait_for(lambda: value(server, "batch_size_sum", model="digits", direction="forward") == 64)
        waiting = stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:60])))
        wait_for(lambda: queue_length(server) == 60)
        code, message = refusal(lambda: stubs.glow.ScoreSet(iter([part(digits[:10])] * 3), timeout=60))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert message.startswith("requests[0]: 60 images wait already")
        waiting.cancel()
        wait_for(lambda: queue_length(server) == 0)
        call = stubs.glow.ScoreSet.future(iter([part(digits[:48])] * 6), timeout=60)
        wait_for(lambda: queue_length(server) == 2 * 48)
        go_on.set()
        assert call.result(60).n == 6 * 48
        running.result(60)


# Bounds


@pytest.mark.parametrize(("images_each", "most"), [(1, 32), (64, 64)])
def test_a_set_has_no_more_images_under_way_than_a_call_may_bring(
    run_server: RunServer, digits: UInt8Array, images_each: int, most: int
) -> None:
    """Images: as many as a call may bring. Requests: 32."""
    with run_server(max_images_per_call=64, **STUCK) as server, connect(server) as stubs:
        endless = Endless(part(digits[:images_each]))
        call = stubs.glow.ScoreSet.future(iter(endless))
        wait_for(lambda: queue_length(server) == most)
        time.sleep(0.3)
        assert queue_length(server) == most
        call.cancel()
        endless.last.set()
        wait_for(lambda: queue_length(server) == 0)
        wait_for(lambda: leases(server) == 0)


def test_the_bytes_of_a_set_are_given_back_as_its_images_are_scored(
    run_server: RunServer, digits: UInt8Array
) -> None:
    """The service holds 1 MiB of requests, and the set has more than three."""
    request = part(digits[:64])
    padded = request.SerializeToString() + b"\xa2\x06" + b"\x80\x80\x04" + bytes(2**16)  # an unknown field
    count = 3 * 2**20 // len(padded)
    with run_server(max_message_mib=1, max_received_mib=1) as server, connect(server) as stubs:
        method = stubs.channel.stream_unary("/glowserve.v1.GlowService/ScoreSet")
        found = pb.ScoreSetResponse.FromString(method(iter([padded] * count), timeout=60))
        assert found.n == 64 * count
        assert value(server, "received_bytes") == 0


def test_a_set_ends_at_its_deadline_even_if_its_caller_is_silent(
    run_server: RunServer, digits: UInt8Array
) -> None:
    silent = threading.Event()

    def requests() -> Iterator[pb.ScoreSetRequest]:
        yield part(digits[:3])
        silent.wait(60)

    with run_server() as server, connect(server) as stubs:
        code, _ = refusal(lambda: stubs.glow.ScoreSet(requests(), timeout=0.5))
        silent.set()
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_for(lambda: in_flight(server) == 0)


# Models that go, and the end of the service


def test_a_model_is_leased_for_a_request_and_a_set_that_outlives_it_is_to_be_sent_again(
    run_server: RunServer, digits: UInt8Array
) -> None:
    with run_server(admin="on") as server, connect(server) as stubs:
        turns = threading.Semaphore(1)

        def requests() -> Iterator[pb.ScoreSetRequest]:
            while turns.acquire(timeout=60):
                yield part(digits[:2])

        call = stubs.glow.ScoreSet.future(requests())
        wait_for(lambda: value(server, "anomaly_p_value_count", model="digits", version="1") == 2)
        wait_for(lambda: leases(server) == 0)
        stubs.glow.UnloadModel(pb.UnloadModelRequest(name="digits"), timeout=60)
        turns.release()
        code, message = refusal(lambda: call.result(60))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert message == "digits version 1 was replaced before the set was complete; send the set again"
        stubs.glow.LoadModel(pb.LoadModelRequest(name="digits"), timeout=60)
        turns.release()


def test_a_version_that_was_loaded_anew_is_another(run_server: RunServer, digits: UInt8Array) -> None:
    with run_server(admin="on") as server, connect(server) as stubs:
        turns = threading.Semaphore(1)

        def requests() -> Iterator[pb.ScoreSetRequest]:
            while turns.acquire(timeout=60):
                yield part(digits[:2])

        call = stubs.glow.ScoreSet.future(requests())
        wait_for(lambda: value(server, "anomaly_p_value_count", model="digits", version="1") == 2)
        stubs.glow.UnloadModel(pb.UnloadModelRequest(name="digits"), timeout=60)
        stubs.glow.LoadModel(pb.LoadModelRequest(name="digits"), timeout=60)
        turns.release()
        assert refusal(lambda: call.result(60))[0] is grpc.StatusCode.UNAVAILABLE
        turns.release()


def test_a_server_that_stops_gives_no_answer_to_a_part_of_a_set(
    start_server: StartServer, digits: UInt8Array
) -> None:
    stopped = threading.Event()

    def requests() -> Iterator[pb.ScoreSetRequest]:
        yield part(digits[:50])
        stopped.wait(60)

    with start_server("--drain-seconds", "600") as server, connect(server.target) as stubs:
        call = stubs.glow.ScoreSet.future(requests())
        wait_for(lambda: server.metric("glowserve_anomaly_p_value_count") == 50)
        log = server.stop()
        assert refusal(lambda: call.result(60)) == (
            grpc.StatusCode.UNAVAILABLE,
            "the server is stopping; try another",
        )
        stopped.set()
    assert "Task" not in log


def test_a_server_that_stops_answers_a_set_that_is_complete(
    start_server: StartServer, digits: UInt8Array
) -> None:
    flags = ("--drain-seconds", "600", "--max-queue-delay-ms", "300", "--max-batch-size", "64")
    with start_server(*flags) as server, connect(server.target) as stubs:
        call = stubs.glow.ScoreSet.future(iter([part(digits[:50])]))
        wait_for(lambda: server.metric("glowserve_queue_length") > 0)
        server.stop()
        assert call.result(60).n == 50


@patches_the_front
def test_a_caller_that_never_ends_its_set_is_refused_at_the_most(
    run_server: RunServer, digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_set, "MAX_IMAGES", 1000)
    with run_server() as server, connect(server) as stubs:
        endless = Endless(part(digits[:128]))
        code, message = refusal(lambda: stubs.glow.ScoreSet(iter(endless), timeout=60))
        endless.last.set()
        assert code is INVALID
        assert message.startswith("requests[7]: images: 128 images after 896; a set has at most 1000")
        wait_for(lambda: in_flight(server) == 0)
