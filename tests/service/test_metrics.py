"""What Prometheus is told, over HTTP."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from glowserve.images import UInt8Array
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import tensor_pb2
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from service.metrics import Metrics
from service.server import Server


def scrape(server: Server) -> tuple[str, str]:
    """The content type and the text."""
    url = f"http://127.0.0.1:{server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=60) as response:
        return response.headers["Content-Type"], response.read().decode()


def values(server: Server) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(scrape(server)[1])
        for sample in family.samples
    }


def value(server: Server, name: str, **labels: str) -> float | None:
    return values(server).get((f"glowserve_{name}", frozenset(labels.items())))


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def raw(images: UInt8Array) -> pb.Images:
    return pb.Images(
        tensor=tensor_pb2.Tensor(dtype="DATA_TYPE_UINT8", shape=images.shape, data=images.tobytes())
    )


@pytest.fixture
def fresh(run_server: Callable[..., Any]) -> Iterator[tuple[Server, GlowServiceStub]]:
    """A server that has not been asked anything."""
    with (
        run_server(max_batch_size=8, instances=1) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield server, GlowServiceStub(channel)


def test_the_page_is_what_prometheus_reads(server: Server) -> None:
    kind, text = scrape(server)
    assert kind.startswith("text/plain")
    assert "version=" in kind
    families = {family.name: family for family in text_string_to_metric_families(text)}
    ours = {
        name: family.type
        for name, family in families.items()
        if name.startswith("glowserve_") and not name.endswith("_created")
    }
    assert ours == {
        "glowserve_requests": "counter",
        "glowserve_request_duration_seconds": "histogram",
        "glowserve_requests_in_flight": "gauge",
        "glowserve_batch_size": "histogram",
        "glowserve_queue_length": "gauge",
        "glowserve_not_finite_images": "counter",
        "glowserve_inexact_encodings": "counter",
        "glowserve_model_info": "gauge",
    }
    assert all(families[name].documentation.endswith(".") for name in ours)
    assert "process_resident_memory_bytes" in families


def test_a_server_that_was_not_asked_says_what_it_serves(fresh: tuple[Server, GlowServiceStub]) -> None:
    server, _ = fresh
    assert value(server, "model_info", model="digits", version="1", device="cpu") == 1
    assert value(server, "requests_in_flight") == 0
    for direction in ("forward", "reverse"):
        assert value(server, "queue_length", model="digits", direction=direction) == 0
        assert value(server, "batch_size_count", model="digits", direction=direction) == 0
    assert not [name for name, _ in values(server) if name == "glowserve_requests_total"]


def test_calls_are_counted_by_method_and_code(
    fresh: tuple[Server, GlowServiceStub], digits: UInt8Array
) -> None:
    server, stub = fresh
    encoding = stub.Encode(pb.EncodeRequest(images=raw(digits[:3])))
    stub.Decode(pb.DecodeRequest(latents=encoding.latents))
    for _ in range(3):
        stub.Score(pb.ScoreRequest(images=raw(digits[:5])))
    list(stub.Sample(pb.SampleRequest(n=20, temperature=0)))
    stub.ListModels(pb.ListModelsRequest())
    stub.GetModel(pb.GetModelRequest())
    for call in (
        lambda: stub.Score(pb.ScoreRequest()),
        lambda: stub.Score(pb.ScoreRequest()),
        lambda: stub.Score(pb.ScoreRequest(model=pb.ModelSpec(name="nobody"))),
        lambda: list(stub.Sample(pb.SampleRequest(n=0))),
        lambda: list(stub.Sample(pb.SampleRequest(n=1, seed=0, temperature=1e30))),
    ):
        with pytest.raises(grpc.RpcError):
            call()
    wait_for(lambda: value(server, "requests_in_flight") == 0)  # an answer may arrive before it is counted
    expected = {
        ("Encode", "OK"): 1,
        ("Decode", "OK"): 1,
        ("Score", "OK"): 3,
        ("Sample", "OK"): 1,
        ("ListModels", "OK"): 1,
        ("GetModel", "OK"): 1,
        ("Score", "INVALID_ARGUMENT"): 2,
        ("Score", "NOT_FOUND"): 1,
        ("Sample", "INVALID_ARGUMENT"): 1,
        ("Sample", "FAILED_PRECONDITION"): 1,
    }
    wait_for(lambda: sum(counted(server).values()) == 13)
    assert counted(server) == expected
    for method in ("Encode", "Decode", "Score", "Sample", "ListModels", "GetModel"):
        calls = sum(n for (name, _), n in expected.items() if name == method)
        assert value(server, "request_duration_seconds_count", method=method) == calls
        assert value(server, "request_duration_seconds_bucket", method=method, le="+Inf") == calls
        assert 0 < (value(server, "request_duration_seconds_sum", method=method) or 0) < 60
    assert value(server, "not_finite_images_total", model="digits", method="Sample") == 1
    assert value(server, "not_finite_images_total", model="digits", method="Score") == 0
    assert value(server, "inexact_encodings_total", model="digits") == 0


def counted(server: Server) -> dict[tuple[str, str], float]:
    """Calls by method and code."""
    return {
        (dict(labels)["method"], dict(labels)["code"]): count
        for (name, labels), count in values(server).items()
        if name == "glowserve_requests_total"
    }


def test_batches_are_counted_by_size(fresh: tuple[Server, GlowServiceStub], digits: UInt8Array) -> None:
    server, stub = fresh
    stub.Score(pb.ScoreRequest(images=raw(digits[:1])))
    stub.Score(pb.ScoreRequest(images=raw(digits[:3])))
    stub.Score(pb.ScoreRequest(images=raw(digits[:20])))  # 8, 8 and 4
    list(stub.Sample(pb.SampleRequest(n=10, temperature=0)))  # 8 and 2
    labels = {"model": "digits", "direction": "forward"}
    assert value(server, "batch_size_count", **labels) == 5
    assert value(server, "batch_size_sum", **labels) == 24
    at_most = [value(server, "batch_size_bucket", **labels, le=f"{size}.0") for size in (1, 2, 4, 8, 16)]
    assert at_most == [1, 1, 3, 5, 5]
    labels = {"model": "digits", "direction": "reverse"}
    assert value(server, "batch_size_sum", **labels) == 10


def test_the_queue_and_the_calls_in_flight_are_seen_while_they_wait(
    run_server: Callable[..., Any], digits: UInt8Array
) -> None:
    with (
        run_server(max_queue_delay_ms=600_000.0, max_batch_size=32, drain_seconds=0.0) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = GlowServiceStub(channel)
        calls = [stub.Score.future(pb.ScoreRequest(images=raw(digits[:9]))) for _ in range(3)]
        wait_for(lambda: value(server, "queue_length", model="digits", direction="forward") == 27)
        assert value(server, "requests_in_flight") == 3
        assert value(server, "queue_length", model="digits", direction="reverse") == 0
        assert counted(server) == {}
        calls.append(stub.Score.future(pb.ScoreRequest(images=raw(digits[:5]))))
        assert [len(call.result(60).scores) for call in calls] == [9, 9, 9, 5]
        wait_for(lambda: value(server, "requests_in_flight") == 0)
        assert value(server, "queue_length", model="digits", direction="forward") == 0


def test_a_call_that_its_caller_cancelled_is_counted_as_that(
    run_server: Callable[..., Any], digits: UInt8Array
) -> None:
    with (
        run_server(max_queue_delay_ms=600_000.0, drain_seconds=0.0) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = GlowServiceStub(channel)
        score = stub.Score.future(pb.ScoreRequest(images=raw(digits[:2])), timeout=600)
        stream = stub.Sample(pb.SampleRequest(n=2))
        wait_for(lambda: value(server, "requests_in_flight") == 2)
        score.cancel()
        stream.cancel()
        wait_for(lambda: counted(server) == {("Score", "CANCELLED"): 1, ("Sample", "CANCELLED"): 1})
        assert value(server, "requests_in_flight") == 0


def test_a_call_past_its_deadline_is_counted_as_that(
    run_server: Callable[..., Any], digits: UInt8Array
) -> None:
    """Caller and server each have a clock: on a busy machine the caller's may end a call first, now and then."""
    with (
        run_server(max_queue_delay_ms=600_000.0, drain_seconds=0.0) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = GlowServiceStub(channel)
        for calls in range(2, 42, 2):
            score = stub.Score.future(pb.ScoreRequest(images=raw(digits[:2])), timeout=1)
            stream = stub.Sample(pb.SampleRequest(n=2), timeout=1)
            assert score.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert stream.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            wait_for(lambda calls=calls: sum(counted(server).values()) == calls)
            if {("Score", "DEADLINE_EXCEEDED"), ("Sample", "DEADLINE_EXCEEDED")} <= counted(server).keys():
                break
        else:
            raise AssertionError(counted(server))
        assert {code for _, code in counted(server)} <= {"DEADLINE_EXCEEDED", "CANCELLED"}
        assert value(server, "requests_in_flight") == 0


def test_metrics_may_be_read_while_calls_come_and_go(server: Server, digits: UInt8Array) -> None:
    requests = [pb.ScoreRequest(images=raw(digits[i : i + 3])) for i in range(100)]
    with (
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ThreadPoolExecutor(16) as pool,
    ):
        calls = [pool.submit(GlowServiceStub(channel).Score, request) for request in requests]
        for _ in range(20):
            assert value(server, "queue_length", model="digits", direction="forward") is not None
        assert [len(call.result().scores) for call in calls] == 100 * [3]


def test_two_services_of_one_process_do_not_share_their_numbers() -> None:
    one, other = Metrics(), Metrics()
    one.requests.labels("Score", "OK").inc()
    labels = {"method": "Score", "code": "OK"}
    assert one.registry.get_sample_value("glowserve_requests_total", labels) == 1
    assert other.registry.get_sample_value("glowserve_requests_total", labels) is None
