"""Batches and queues of a real server, as its metrics count them."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from glowserve_service.server import Server

from glowserve.images import UInt8Array
from glowserve.v1 import glow_service_pb2 as pb
from tests.servers import RunServer
from tests.service.scraping import series, value
from tests.service.stubs import Stubs, connect
from tests.service.wire import raw, wait_for

# A batch is dispatched only when it is full: calls wait in the queue until a test ends them.
WAITING = {"max_queue_delay_ms": 600_000.0, "drain_seconds": 0.0}
FORWARD = {"model": "digits", "direction": "forward"}
REVERSE = {"model": "digits", "direction": "reverse"}


@pytest.fixture
def fresh(run_server: RunServer) -> Iterator[tuple[Server, Stubs]]:
    """A server that has had no call."""
    with run_server(max_batch_size=8, instances=1) as server, connect(server) as stubs:
        yield server, stubs


def reasons(server: Server, direction: str) -> dict[str, float]:
    """Batches by the reason for which they were dispatched."""
    return {
        each["reason"]: count
        for each, count in series(server, "batches_total")
        if each["direction"] == direction
    }


def dropped(server: Server) -> dict[str, float]:
    """Dropped images of the forward direction by cause; causes without any left out."""
    counts = series(server, "dropped_images_total")
    assert not any(count for each, count in counts if each["direction"] == "reverse")
    return {each["cause"]: count for each, count in counts if count}


def test_batches_are_counted_by_size(fresh: tuple[Server, Stubs], digits: UInt8Array) -> None:
    server, stubs = fresh
    for n in (1, 3, 20):  # batches of 1, 3, and 8 + 8 + 4
        stubs.glow.Score(pb.ScoreRequest(images=raw(digits[:n])))
    list(stubs.glow.Sample(pb.SampleRequest(n=10, temperature=0)))  # batches of 8 and 2
    assert value(server, "batch_size_count", **FORWARD) == 5
    assert value(server, "batch_size_sum", **FORWARD) == 24
    at_most = [value(server, "batch_size_bucket", **FORWARD, le=f"{size}.0") for size in (1, 2, 4, 8, 16)]
    assert at_most == [1, 1, 3, 5, 5]
    assert value(server, "batch_size_sum", **REVERSE) == 10


def test_batches_are_counted_by_the_reason_for_their_dispatch(
    fresh: tuple[Server, Stubs], digits: UInt8Array
) -> None:
    server, stubs = fresh
    stubs.glow.Score(pb.ScoreRequest(images=raw(digits[:20])))
    assert reasons(server, "forward") == {"full": 2, "worker_free": 1, "delay": 0}
    assert reasons(server, "reverse") == {"full": 0, "worker_free": 0, "delay": 0}
    assert value(server, "padded_rows_total", **FORWARD) == 0


def test_a_batch_that_waited_for_more_images_counts_its_delay(
    run_server: RunServer, digits: UInt8Array
) -> None:
    with run_server(max_queue_delay_ms=200.0, max_batch_size=8) as server, connect(server) as stubs:
        stubs.glow.Score(pb.ScoreRequest(images=raw(digits[:20])))
        assert reasons(server, "forward") == {"full": 2, "worker_free": 0, "delay": 1}
        assert 0.2 <= (value(server, "queue_seconds_sum", **FORWARD) or 0) < 60
        assert value(server, "queue_seconds_bucket", **FORWARD, le="0.1") == 2


def test_images_that_do_not_run_are_counted_by_cause(run_server: RunServer, digits: UInt8Array) -> None:
    limits = {"max_batch_size": 16, "max_images_per_call": 16, "max_queue_size": 16}
    with run_server(**WAITING, **limits) as server, connect(server) as stubs:
        waiting = stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:7])))
        wait_for(lambda: value(server, "queue_length", **FORWARD) == 7)
        with pytest.raises(grpc.RpcError):
            stubs.glow.Score(pb.ScoreRequest(images=raw(digits[:10])))
        assert dropped(server) == {"queue_full": 10}
        waiting.cancel()
        wait_for(lambda: dropped(server) == {"queue_full": 10, "cancelled": 7})
        assert stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:3])), timeout=0.5).exception()
        wait_for(lambda: sum(dropped(server).values()) == 20)
        assert dropped(server) in (
            {"queue_full": 10, "cancelled": 7, "deadline": 3},
            {"queue_full": 10, "cancelled": 10},  # the client's clock ended the call first
        )


def test_the_queue_and_the_open_calls_are_shown_while_they_wait(
    run_server: RunServer, digits: UInt8Array
) -> None:
    with run_server(**WAITING, max_batch_size=32) as server, connect(server) as stubs:
        calls = [stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:9]))) for _ in range(3)]
        wait_for(lambda: value(server, "queue_length", **FORWARD) == 27)
        assert value(server, "requests_in_flight") == 3
        assert value(server, "queue_length", **REVERSE) == 0
        assert series(server, "requests_total") == []
        calls.append(stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:5]))))
        assert [len(call.result(60).scores) for call in calls] == [9, 9, 9, 5]
        wait_for(lambda: value(server, "requests_in_flight") == 0)
        assert value(server, "queue_length", **FORWARD) == 0
