"""Concurrent calls to the service: a small one goes before large ones, and what the queue drops is counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server
from google.protobuf.message import Message

from glowserve.images import UInt8Array
from glowserve.messages import float_tensor
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from glowserve.runtime.engine import Engine, Reverse
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.wire import raw, wait_for

PATIENCE = 60  # seconds, far more than anything here takes


def decode_request(n: int) -> pb.DecodeRequest:
    return pb.DecodeRequest(latents=float_tensor(np.zeros((n, 64), np.float32)), format=pb.IMAGE_FORMAT_RAW)


def value(server: Server, name: str, direction: str, **labels: str) -> float:
    labels |= {"model": "digits", "direction": direction}
    found = server.metrics.registry.get_sample_value(f"glowserve_{name}", labels)
    assert found is not None, name
    return found


def dropped(server: Server, direction: str, cause: str) -> float:
    return value(server, "dropped_images_total", direction, cause=cause)


def wait_until_idle(server: Server) -> None:
    wait_for(lambda: server.metrics.registry.get_sample_value("glowserve_requests_in_flight") == 0)


@pytest.fixture
def waiting_server(run_server: Callable[..., Any]) -> Iterator[tuple[Server, grpc.Channel]]:
    """A server whose images wait until a batch is full."""
    with (
        run_server(max_queue_delay_ms=600_000.0, drain_seconds=0.0) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield server, channel


@pytest.mark.parametrize(
    ("request_", "images", "callers", "waiting"),
    [
        (decode_request(256), 256, 18, 18 * 256 - 32),
        (pb.SampleRequest(n=96, temperature=0, format=pb.IMAGE_FORMAT_RAW), 96, 100, 99 * 32),
    ],
    ids=["Decode", "Sample"],
)
def test_a_small_call_is_in_the_next_batch_although_large_ones_wait(
    run_server: Callable[..., Any],
    request_: Message,
    images: int,
    callers: int,
    waiting: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches, reverse = threading.Semaphore(0), Engine.reverse

    def run_if_allowed(engine: Engine, *rows: Any, **options: Any) -> Reverse:
        if engine is served:  # not that of another server in this process, which tries its canary
            assert batches.acquire(timeout=PATIENCE)
        return reverse(engine, *rows, **options)

    def call(stub: GlowServiceStub) -> int:
        sample = isinstance(request_, pb.SampleRequest)
        responses = stub.Sample(request_) if sample else [stub.Decode(request_)]
        return sum(response.images.tensor.shape[0] for response in responses)

    with (
        run_server(max_queue_size=8192, instances=1, canary_seconds=0) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ThreadPoolExecutor(callers) as pool,
    ):
        served = server.manager._models.find("digits", 0)._engine
        monkeypatch.setattr(Engine, "reverse", run_if_allowed)
        stub = GlowServiceStub(channel)
        large = [pool.submit(call, stub) for _ in range(callers)]
        wait_for(lambda: value(server, "queue_length", "reverse") >= waiting)
        small = stub.Decode.future(decode_request(1))
        wait_for(lambda: value(server, "queue_length", "reverse") > waiting)
        batches.release(2)  # the one that runs already, and the next
        try:
            small.result(PATIENCE)
        finally:
            batches.release(10_000)
        assert [future.result() for future in large] == [images] * callers


# Seconds: long enough for a busy machine to put the rows into the queue.
LATE = 1.0


def test_dropped_images_are_counted_by_cause(
    waiting_server: tuple[Server, grpc.Channel], digits: UInt8Array
) -> None:
    server, channel = waiting_server
    stub, infer = GlowServiceStub(channel), GRPCInferenceServiceStub(channel)
    image = {"name": "image", "datatype": "UINT8", "shape": [4, 8, 8, 1]}
    infer_request = oip.ModelInferRequest(
        model_name="digits", inputs=[image], raw_input_contents=[digits[:4].tobytes()]
    )
    for call, direction, images in (
        (lambda: stub.Score(pb.ScoreRequest(images=raw(digits[:5])), timeout=LATE), "forward", 5),
        (lambda: stub.Encode(pb.EncodeRequest(images=raw(digits[:6])), timeout=LATE), "forward", 6),
        (lambda: stub.Decode(decode_request(7), timeout=LATE), "reverse", 7),
        (lambda: list(stub.Sample(pb.SampleRequest(n=8), timeout=LATE)), "reverse", 8),
        (lambda: infer.ModelInfer(infer_request, timeout=LATE), "forward", 4),
        (lambda: list(infer.ModelStreamInfer(iter([infer_request] * 2), timeout=LATE)), "forward", 8),
    ):
        before = dropped(server, direction, "deadline")
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until_idle(server)
        assert dropped(server, direction, "deadline") - before == images
        assert dropped(server, direction, "cancelled") == 0
    cancelled = stub.Score.future(pb.ScoreRequest(images=raw(digits[:5])), timeout=PATIENCE)
    wait_for(lambda: value(server, "queue_length", "forward") == 5)
    cancelled.cancel()
    wait_until_idle(server)
    assert dropped(server, "forward", "cancelled") == 5
