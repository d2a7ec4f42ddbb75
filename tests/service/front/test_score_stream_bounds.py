"""ScoreStream: what one stream may hold in the service, whatever its caller sends or does not read."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from glowserve.images import UInt8Array, encode_png
from glowserve.v1 import glow_service_pb2 as pb
from tests.servers import RunServer
from tests.service.metrics import ended, in_flight, leases, queue_length, value
from tests.service.stubs import connect
from tests.service.wire import SMALL_WINDOW, encoded, raw, wait_for, wait_until_still

SETTINGS: dict[str, Any] = {"max_batch_size": 1000, "max_queue_delay_ms": 600_000.0, "drain_seconds": 0}
"""Images wait for a batch that is never full."""


class Endless:
    """The same request again and again, until `last` is set; counts how many gRPC has taken."""

    def __init__(self, request: pb.ScoreRequest) -> None:
        self.request = request
        self.taken = 0
        self.last = threading.Event()

    def __iter__(self) -> Iterator[pb.ScoreRequest]:
        while not self.last.is_set():
            self.taken += 1
            yield self.request


@pytest.mark.parametrize(("images_each", "most"), [(1, 32), (2, 64), (8, 64), (64, 64)])
def test_a_stream_has_no_more_requests_and_images_under_way_than_are_permitted(
    run_server: RunServer, digits: UInt8Array, images_each: int, most: int
) -> None:
    """Images: as many as a call may bring. Requests: 32."""
    with run_server(max_images_per_call=64, **SETTINGS) as server, connect(server) as stubs:
        endless = Endless(pb.ScoreRequest(images=raw(digits[:images_each])))
        call = stubs.glow.ScoreStream(iter(endless))
        wait_for(lambda: queue_length(server) == most)
        time.sleep(0.3)
        assert queue_length(server) == most
        call.cancel()
        endless.last.set()
        wait_for(lambda: queue_length(server) == 0)


def test_a_stream_has_no_more_bytes_under_way_than_a_call_may_bring(run_server: RunServer) -> None:
    """Pictures of about 300 KiB: four are more than a message of 1 MiB."""
    noise = np.random.default_rng(0).integers(0, 256, (560, 560, 1), np.uint8)
    picture = pb.ScoreRequest(images=encoded(encode_png(noise)))
    assert 2**20 / 4 < picture.ByteSize() < 2**20 / 3
    with run_server(max_message_mib=1, **SETTINGS) as server, connect(server) as stubs:
        endless = Endless(picture)
        call = stubs.glow.ScoreStream(iter(endless))
        wait_for(lambda: queue_length(server) == 4)
        time.sleep(0.3)
        assert queue_length(server) == 4
        call.cancel()
        endless.last.set()


def test_a_stream_whose_answers_nobody_reads_is_not_read_further_and_loses_no_answer(
    run_server: RunServer, digits: UInt8Array
) -> None:
    """The connection holds some answers. When it is full, nothing runs and nothing is read until one is taken."""
    with run_server(max_images_per_call=64) as server, connect(server, SMALL_WINDOW) as stubs:
        endless = Endless(pb.ScoreRequest(images=raw(digits[:64])))
        call = stubs.glow.ScoreStream(iter(endless))
        next(call)

        def state() -> tuple[int, float]:
            return endless.taken, value(server, "batch_size_sum", model="digits", direction="forward")

        taken, run = wait_until_still(state)
        assert queue_length(server) == 0
        assert run / 64 < 200
        assert in_flight(server) == 1
        others = stubs.glow.Score(pb.ScoreRequest(images=raw(digits[:3])))
        assert len(others.scores) == 3
        for _ in range(2 * taken):
            next(call)
        assert endless.taken > taken
        endless.last.set()
        assert 1 + 2 * taken + sum(1 for _ in call) == endless.taken
        assert ended(server, "ScoreStream", "OK") == 1


def test_a_model_is_leased_for_a_request_and_not_for_the_stream(
    run_server: RunServer, digits: UInt8Array
) -> None:
    """A stream of hours would keep every version in memory that was served meanwhile."""
    with run_server(admin="on") as server, connect(server) as stubs:
        turns = threading.Semaphore(1)

        def requests() -> Iterator[pb.ScoreRequest]:
            while turns.acquire(timeout=60):
                yield pb.ScoreRequest(images=raw(digits[:1]))

        call = stubs.glow.ScoreStream(requests())
        next(call)
        wait_for(lambda: leases(server) == 0)
        stubs.glow.UnloadModel(pb.UnloadModelRequest(name="digits"), timeout=60)
        turns.release()
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details().startswith("requests[1]: model.name '' is not served")
        turns.release()
