"""Calls of a real server, as its metrics count and time them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from glowserve_service.server import Server

from glowserve.images import UInt8Array
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.v1 import glow_service_pb2 as pb
from tests.servers import RunServer
from tests.service.scraping import page, series, value
from tests.service.stubs import Stubs, connect
from tests.service.wire import raw, wait_for

# A batch is dispatched only when it is full: calls wait in the queue until a test ends them.
WAITING = {"max_queue_delay_ms": 600_000.0, "drain_seconds": 0.0}


@pytest.fixture
def fresh(run_server: RunServer) -> Iterator[tuple[Server, Stubs]]:
    """A server that has had no call."""
    with run_server(max_batch_size=8, instances=1) as server, connect(server) as stubs:
        yield server, stubs


def counted(server: Server) -> dict[tuple[str, str, str], float]:
    """Finished calls by method, model and code."""
    return {
        (labels["method"], labels["model"], labels["code"]): count
        for labels, count in series(server, "requests_total")
    }


def test_calls_are_counted_by_method_model_and_code(fresh: tuple[Server, Stubs], digits: UInt8Array) -> None:
    server, stubs = fresh
    glow = stubs.glow
    encoding = glow.Encode(pb.EncodeRequest(images=raw(digits[:3])))
    glow.Decode(pb.DecodeRequest(latents=encoding.latents))
    for _ in range(3):
        glow.Score(pb.ScoreRequest(images=raw(digits[:5])))
    list(glow.Sample(pb.SampleRequest(n=20, temperature=0)))
    glow.ListModels(pb.ListModelsRequest())
    glow.GetModel(pb.GetModelRequest())
    refused: tuple[Callable[[], Any], ...] = (
        lambda: glow.Score(pb.ScoreRequest()),
        lambda: glow.Score(pb.ScoreRequest()),
        lambda: glow.Score(pb.ScoreRequest(model=pb.ModelSpec(name="nobody"))),
        lambda: list(glow.Sample(pb.SampleRequest(n=0))),
        lambda: list(glow.Sample(pb.SampleRequest(n=1, seed=0, temperature=3e38))),
    )
    for call in refused:
        with pytest.raises(grpc.RpcError):
            call()
    # Calls are counted before their callers see their ends.
    assert value(server, "requests_in_flight") == 0
    expected = {
        ("Encode", "digits", "OK"): 1,
        ("Decode", "digits", "OK"): 1,
        ("Score", "digits", "OK"): 3,
        ("Sample", "digits", "OK"): 1,
        ("ListModels", "", "OK"): 1,
        ("GetModel", "digits", "OK"): 1,
        ("Score", "digits", "INVALID_ARGUMENT"): 2,
        ("Score", "", "NOT_FOUND"): 1,
        ("Sample", "digits", "INVALID_ARGUMENT"): 1,
        ("Sample", "digits", "FAILED_PRECONDITION"): 1,
    }
    assert counted(server) == expected
    for method in ("Encode", "Decode", "Score", "Sample", "ListModels", "GetModel"):
        calls = sum(n for (name, _, _), n in expected.items() if name == method)
        assert value(server, "request_duration_seconds_count", method=method) == calls
        assert value(server, "request_duration_seconds_bucket", method=method, le="+Inf") == calls
        assert 0 < (value(server, "request_duration_seconds_sum", method=method) or 0) < 60
    assert value(server, "not_finite_images_total", model="digits", method="Sample") == 1
    assert value(server, "not_finite_images_total", model="digits", method="Score") == 0
    assert value(server, "inexact_encodings_total", model="digits") == 0


def test_names_that_callers_make_up_create_no_series(fresh: tuple[Server, Stubs]) -> None:
    server, stubs = fresh
    for i in range(20):
        for spec in (pb.ModelSpec(name=f"nobody{i}"), pb.ModelSpec(name="digits", version=100 + i)):
            with pytest.raises(grpc.RpcError):
                stubs.glow.GetModel(pb.GetModelRequest(model=spec))
    assert counted(server) == {("GetModel", "", "NOT_FOUND"): 40}
    assert "nobody" not in page(server)


def test_a_stream_is_counted_once_under_the_model_that_it_used(fresh: tuple[Server, Stubs]) -> None:
    server, stubs = fresh
    request = oip.ModelInferRequest(model_name="digits.sample")
    for name, datatype in (("seed", "UINT64"), ("temperature", "FP32")):
        request.inputs.add(name=name, datatype=datatype, shape=[2, 1])
    request.inputs[0].contents.uint64_contents[:] = [1, 2]
    request.inputs[1].contents.fp32_contents[:] = [0, 0]
    stubs.inference.ModelInfer(request)
    requests = iter([request, oip.ModelInferRequest(model_name="nobody"), request])
    responses = list(stubs.inference.ModelStreamInfer(requests))
    assert [bool(response.error_message) for response in responses] == [False, True, False]
    assert counted(server) == {("ModelInfer", "digits", "OK"): 1, ("ModelStreamInfer", "digits", "OK"): 1}


def test_each_stage_of_a_call_is_timed(fresh: tuple[Server, Stubs], digits: UInt8Array) -> None:
    server, stubs = fresh
    for n in (1, 3, 20):  # batches of 1, 3, and 8 + 8 + 4
        stubs.glow.Score(pb.ScoreRequest(images=raw(digits[:n])))
    list(stubs.glow.Sample(pb.SampleRequest(n=10, temperature=0)))  # batches of 8 and 2
    stubs.glow.ListModels(pb.ListModelsRequest())
    with pytest.raises(grpc.RpcError):
        list(stubs.glow.Sample(pb.SampleRequest(n=1, seed=0, temperature=3e38)))
    for stage in ("preparation", "serialization"):
        counts = {(each["model"], each["method"]): n for each, n in series(server, f"{stage}_seconds_count")}
        assert counts == {("digits", "Score"): 3, ("digits", "Sample"): 1}
    for stage in ("queue", "execution"):
        counts = {
            (each["model"], each["direction"]): n for each, n in series(server, f"{stage}_seconds_count")
        }
        # The sample of the last call was drawn three times.
        assert counts == {("digits", "forward"): 5, ("digits", "reverse"): 2 + 3, ("digits", "explain"): 0}
    total = sum(seconds for _, seconds in series(server, "request_duration_seconds_sum"))
    for stage in ("preparation", "queue", "execution", "serialization"):
        assert 0 < sum(seconds for _, seconds in series(server, f"{stage}_seconds_sum")) < total


def test_a_cancelled_call_is_counted_as_cancelled(run_server: RunServer, digits: UInt8Array) -> None:
    with run_server(**WAITING) as server, connect(server) as stubs:
        score = stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:2])), timeout=600)
        stream = stubs.glow.Sample(pb.SampleRequest(n=2))
        wait_for(lambda: value(server, "requests_in_flight") == 2)
        score.cancel()
        stream.cancel()
        cancelled = {("Score", "digits", "CANCELLED"): 1.0, ("Sample", "digits", "CANCELLED"): 1.0}
        wait_for(lambda: counted(server) == cancelled)
        assert value(server, "requests_in_flight") == 0


def test_a_call_past_its_deadline_is_counted_as_late(run_server: RunServer, digits: UInt8Array) -> None:
    """Client and server each have a clock: on a busy machine the client's may now and then end a call first."""
    with run_server(**WAITING) as server, connect(server) as stubs:
        for calls in range(2, 42, 2):
            score = stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:2])), timeout=1)
            stream = stubs.glow.Sample(pb.SampleRequest(n=2), timeout=1)
            assert score.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert stream.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            wait_for(lambda calls=calls: sum(counted(server).values()) == calls)
            late = {(method, "digits", "DEADLINE_EXCEEDED") for method in ("Score", "Sample")}
            if late <= counted(server).keys():
                break
        else:
            raise AssertionError(counted(server))
        assert {code for _, _, code in counted(server)} <= {"DEADLINE_EXCEEDED", "CANCELLED"}
        assert value(server, "requests_in_flight") == 0


def test_metrics_can_be_scraped_while_calls_begin_and_end(server: Server, digits: UInt8Array) -> None:
    requests = [pb.ScoreRequest(images=raw(digits[i : i + 3])) for i in range(100)]
    with connect(server) as stubs, ThreadPoolExecutor(16) as pool:
        calls = [pool.submit(stubs.glow.Score, request) for request in requests]
        for _ in range(20):
            assert value(server, "queue_length", model="digits", direction="forward") is not None
        assert [len(call.result().scores) for call in calls] == 100 * [3]
