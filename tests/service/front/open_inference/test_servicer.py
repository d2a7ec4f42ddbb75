"""ModelInfer and ModelStreamInfer: batches, bounds of a stream, statistics, and what is counted."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import grpc
import pytest
from glowserve_service.server import Server

from glowserve.images import UInt8Array
from glowserve.oip import grpc_service_pb2 as pb
from glowserve.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.servers import RunServer
from tests.service.front.open_inference.requests import image_request
from tests.service.metrics import ended, in_flight, queue_length
from tests.service.stubs import connect
from tests.service.wire import SMALL_WINDOW, refusal, wait_for, wait_until_still

FOREVER = 600_000.0
"""Milliseconds that images may wait for more: longer than a test."""


def statistics_of(stub: GRPCInferenceServiceStub) -> pb.ModelStatistics:
    (statistics,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name="digits", version="1")).model_stats
    return statistics


def test_requests_of_a_stream_share_batches(run_server: RunServer, digits: UInt8Array) -> None:
    """The test would not end if the requests were scored one after the other."""
    with (
        run_server(max_batch_size=16, max_queue_delay_ms=FOREVER, drain_seconds=0) as server,
        connect(server) as stubs,
    ):
        requests = [image_request(digits[i : i + 1], id=str(i)) for i in range(160)]
        responses = list(stubs.inference.ModelStreamInfer(iter(requests), timeout=60))
        assert [response.infer_response.id for response in responses] == [request.id for request in requests]
        statistics = statistics_of(stubs.inference)
    assert (statistics.inference_count, statistics.execution_count) == (160, 10)
    assert [entry.batch_size for entry in statistics.batch_stats] == [16]
    stats = statistics.inference_stats
    assert (stats.success.count, stats.queue.count, stats.compute_infer.count) == (160, 160, 160)
    assert stats.compute_infer.ns == pytest.approx(16 * statistics.batch_stats[0].compute_infer.ns)


@pytest.mark.parametrize(("size", "most"), [(1, 32), (20, 80)])
def test_a_stream_has_no_more_requests_and_images_under_way_than_are_permitted(
    run_server: RunServer, digits: UInt8Array, size: int, most: int
) -> None:
    """32 requests, 64 images, or one request more: three of 20 images are fewer than 64."""
    settings = {"max_images_per_call": 64, "max_batch_size": 1000}
    with (
        run_server(**settings, max_queue_delay_ms=FOREVER, drain_seconds=0) as server,
        connect(server) as stubs,
    ):
        stream = stubs.inference.ModelStreamInfer(itertools.repeat(image_request(digits[:size])))
        wait_for(lambda: queue_length(server) == most)
        time.sleep(0.3)
        assert queue_length(server) == most
        stream.cancel()


def test_a_stream_whose_answers_nobody_reads_is_not_read_further(server: Server, digits: UInt8Array) -> None:
    taken = 0

    def requests() -> Iterator[pb.ModelInferRequest]:
        nonlocal taken
        while True:
            taken += 1
            yield image_request(digits[:64])

    with connect(server, SMALL_WINDOW) as stubs:
        stream = stubs.inference.ModelStreamInfer(requests())
        next(stream)
        assert wait_until_still(lambda: taken) * 64 * 64 < 2 * 2**20
        stream.cancel()


def test_requests_that_are_refused_or_cancelled_are_counted_as_failed(
    run_server: RunServer, digits: UInt8Array
) -> None:
    settings = {"max_queue_size": 64, "max_images_per_call": 64}
    with (
        run_server(**settings, max_queue_delay_ms=FOREVER, drain_seconds=0) as server,
        connect(server) as stubs,
    ):
        stream = stubs.inference.ModelStreamInfer(iter([image_request(digits[:20])]))
        wait_for(lambda: queue_length(server) == 20)
        code, _ = refusal(lambda: stubs.inference.ModelInfer(image_request(digits[:64])))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        stream.cancel()
        wait_for(lambda: queue_length(server) == 0)
        wait_for(lambda: in_flight(server) == 0)
        statistics = statistics_of(stubs.inference)
    assert statistics.inference_stats.fail.count == 2
    assert statistics.inference_stats.success.count == statistics.execution_count == 0


def test_bytes_that_are_no_message_end_the_stream_and_are_counted(server: Server) -> None:
    before = ended(server, "ModelStreamInfer", "INVALID_ARGUMENT", model="")
    with connect(server) as stubs:
        call = stubs.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        responses = call(iter([b"\xff"]))
        code, message = refusal(lambda: next(responses))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message.startswith("the message is not one that ModelStreamInfer takes")
    assert ended(server, "ModelStreamInfer", "INVALID_ARGUMENT", model="") == before + 1


def test_another_repository_than_the_one_is_unsupported(inference: GRPCInferenceServiceStub) -> None:
    request = pb.RepositoryIndexRequest(repository_name="other")
    assert refusal(lambda: inference.RepositoryIndex(request)) == (
        grpc.StatusCode.UNIMPLEMENTED,
        "repository_name is 'other'; there is one repository, leave it empty",
    )
