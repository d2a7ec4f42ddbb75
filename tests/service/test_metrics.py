"""What Prometheus is told, over HTTP."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import onnx
import pytest
from glowserve_service.observability.metrics import Metrics
from glowserve_service.server import Server
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from glowserve.images import UInt8Array
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from glowserve.runtime.repository import Bundle
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.wire import raw, wait_for


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
    ours = [name for name in families if name.startswith("glowserve_") and not name.endswith("_created")]
    assert len(ours) > 15
    assert all(families[name].documentation.endswith(".") for name in ours)
    assert {"process_resident_memory_bytes", "process_cpu_seconds"} <= families.keys()


def test_the_operations_page_lists_every_metric_with_its_labels() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    listed = re.findall(r"^\| `(glowserve_\w+)` \| (\w+) \| ([^|]*) \| (.*) \|$", text, re.MULTILINE)
    made = vars(Metrics()).values()
    assert listed == [
        (
            f"{metric._name}_total" if metric._type == "counter" else metric._name,
            metric._type,
            ", ".join(f"`{label}`" for label in metric._labelnames),
            metric._documentation,
        )
        for metric in made
        if isinstance(metric, MetricWrapperBase)
    ]


def test_the_alert_rules_ask_for_metrics_and_labels_that_there_are() -> None:
    rules = (Path(__file__).parents[2] / "deploy" / "prometheus" / "rules.yml").read_text()
    made = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in Metrics().registry.collect()
    }
    asked = set(re.findall(r"glowserve_\w+", rules))
    assert len(asked) == 5
    assert asked <= made
    codes = {code.name for code in grpc.StatusCode}
    assert set(re.findall(r'code="(\w+)"', rules)) == {"RESOURCE_EXHAUSTED", "INTERNAL"} <= codes


def test_a_server_that_was_not_asked_says_what_it_serves(fresh: tuple[Server, GlowServiceStub]) -> None:
    server, _ = fresh
    assert value(server, "requests_in_flight") == 0
    assert value(server, "ready") == 1
    assert value(server, "model_loads_total", model="digits", outcome="loaded") == 1
    assert value(server, "canary_checks_total", model="digits", outcome="ok") == 1
    for direction in ("forward", "reverse"):
        assert value(server, "queue_length", model="digits", direction=direction) == 0
        assert value(server, "batch_size_count", model="digits", direction=direction) == 0
    assert not [name for name, _ in values(server) if name == "glowserve_requests_total"]


def test_it_says_where_and_how_a_model_runs(fresh: tuple[Server, GlowServiceStub], bundle: Bundle) -> None:
    server, stub = fresh
    names = {"device": "cpu", "provider": "CPUExecutionProvider", "precision": "fp32"}
    assert value(server, "model_info", model="digits", version="1", **names) == 1
    graphs = stub.GetModel(pb.GetModelRequest()).graphs
    assert [placed.graph for placed in graphs] == ["forward.onnx", "reverse.onnx"]
    for placed in graphs:
        assert placed.provider == "CPUExecutionProvider"
        assert placed.nodes == len(onnx.load_from_string(bundle.read(placed.graph)).graph.node)
        labels = {"model": "digits", "version": "1", "graph": placed.graph, "provider": placed.provider}
        assert value(server, "graph_nodes", **labels) == placed.nodes


def test_calls_are_counted_by_method_model_and_code(
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
    # Before its caller hears of its end, a call is counted.
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


def counted(server: Server) -> dict[tuple[str, str, str], float]:
    """Calls by method, model and code."""
    return {
        (labels["method"], labels["model"], labels["code"]): count
        for labels, count in series(server, "requests_total")
    }


def series(server: Server, name: str) -> list[tuple[dict[str, str], float]]:
    """All of a metric."""
    return [
        (dict(labels), count)
        for (each, labels), count in values(server).items()
        if each == f"glowserve_{name}"
    ]


def test_names_that_callers_make_up_become_no_series(fresh: tuple[Server, GlowServiceStub]) -> None:
    server, stub = fresh
    for i in range(20):
        for spec in (pb.ModelSpec(name=f"nobody{i}"), pb.ModelSpec(name="digits", version=100 + i)):
            with pytest.raises(grpc.RpcError):
                stub.GetModel(pb.GetModelRequest(model=spec))
    assert counted(server) == {("GetModel", "", "NOT_FOUND"): 40}
    assert "nobody" not in scrape(server)[1]


def test_a_stream_is_counted_under_the_model_that_it_asked(fresh: tuple[Server, GlowServiceStub]) -> None:
    server, _ = fresh
    ask = oip.ModelInferRequest(model_name="digits.sample")
    for name, datatype in (("seed", "UINT64"), ("temperature", "FP32")):
        ask.inputs.add(name=name, datatype=datatype, shape=[2, 1])
    ask.inputs[0].contents.uint64_contents[:] = [1, 2]
    ask.inputs[1].contents.fp32_contents[:] = [0, 0]
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        stub.ModelInfer(ask)
        answers = list(stub.ModelStreamInfer(iter([ask, oip.ModelInferRequest(model_name="nobody"), ask])))
    assert [bool(answer.error_message) for answer in answers] == [False, True, False]
    assert counted(server) == {("ModelInfer", "digits", "OK"): 1, ("ModelStreamInfer", "digits", "OK"): 1}


def test_each_stage_of_a_call_is_timed(fresh: tuple[Server, GlowServiceStub], digits: UInt8Array) -> None:
    server, stub = fresh
    for n in (1, 3, 20):  # 1, 3, and 8 + 8 + 4
        stub.Score(pb.ScoreRequest(images=raw(digits[:n])))
    list(stub.Sample(pb.SampleRequest(n=10, temperature=0)))  # 8 and 2
    stub.ListModels(pb.ListModelsRequest())
    with pytest.raises(grpc.RpcError):
        stub.Sample(pb.SampleRequest(n=1, seed=0, temperature=1e30)).result()
    for stage in ("preparation", "serialization"):
        counts = {(each["model"], each["method"]): n for each, n in series(server, f"{stage}_seconds_count")}
        assert counts == {("digits", "Score"): 3, ("digits", "Sample"): 1}
    for stage in ("queue", "execution"):
        counts = {
            (each["model"], each["direction"]): n for each, n in series(server, f"{stage}_seconds_count")
        }
        assert counts == {("digits", "forward"): 5, ("digits", "reverse"): 3}
    whole = sum(seconds for _, seconds in series(server, "request_duration_seconds_sum"))
    for stage in ("preparation", "queue", "execution", "serialization"):
        assert 0 < sum(seconds for _, seconds in series(server, f"{stage}_seconds_sum")) < whole


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


def test_it_is_said_why_a_batch_was_sent(
    fresh: tuple[Server, GlowServiceStub], run_server: Callable[..., Any], digits: UInt8Array
) -> None:
    server, stub = fresh
    stub.Score(pb.ScoreRequest(images=raw(digits[:20])))
    assert reasons(server, "forward") == {"full": 2, "worker_free": 1, "delay": 0}
    assert reasons(server, "reverse") == {"full": 0, "worker_free": 0, "delay": 0}
    assert value(server, "padded_rows_total", model="digits", direction="forward") == 0
    with (
        run_server(max_queue_delay_ms=200.0, max_batch_size=8) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        GlowServiceStub(channel).Score(pb.ScoreRequest(images=raw(digits[:20])))
        assert reasons(server, "forward") == {"full": 2, "worker_free": 0, "delay": 1}
        labels = {"model": "digits", "direction": "forward"}
        assert 0.2 <= (value(server, "queue_seconds_sum", **labels) or 0) < 60
        assert value(server, "queue_seconds_bucket", **labels, le="0.1") == 2


def reasons(server: Server, direction: str) -> dict[str, float]:
    return {
        each["reason"]: count
        for each, count in series(server, "batches_total")
        if each["direction"] == direction
    }


def test_images_that_do_not_run_are_counted_by_cause(
    run_server: Callable[..., Any], digits: UInt8Array
) -> None:
    limits = {"max_batch_size": 16, "max_images_per_call": 16, "max_queue_size": 16}
    with (
        run_server(max_queue_delay_ms=600_000.0, drain_seconds=0.0, **limits) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = GlowServiceStub(channel)
        waiting = stub.Score.future(pb.ScoreRequest(images=raw(digits[:7])))
        wait_for(lambda: value(server, "queue_length", model="digits", direction="forward") == 7)
        with pytest.raises(grpc.RpcError):
            stub.Score(pb.ScoreRequest(images=raw(digits[:10])))
        assert dropped(server) == {"queue_full": 10}
        waiting.cancel()
        wait_for(lambda: dropped(server) == {"queue_full": 10, "cancelled": 7})
        assert stub.Score.future(pb.ScoreRequest(images=raw(digits[:3])), timeout=0.5).exception()
        wait_for(lambda: sum(dropped(server).values()) == 20)
        assert dropped(server) in (
            {"queue_full": 10, "cancelled": 7, "deadline": 3},
            {"queue_full": 10, "cancelled": 10},  # the caller's clock was first
        )


def dropped(server: Server) -> dict[str, float]:
    """Of forward, those that there were."""
    counts = series(server, "dropped_images_total")
    assert not any(count for each, count in counts if each["direction"] == "reverse")
    return {each["cause"]: count for each, count in counts if count}


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
        wait_for(
            lambda: (
                counted(server) == {("Score", "digits", "CANCELLED"): 1, ("Sample", "digits", "CANCELLED"): 1}
            )
        )
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
            late = {(method, "digits", "DEADLINE_EXCEEDED") for method in ("Score", "Sample")}
            if late <= counted(server).keys():
                break
        else:
            raise AssertionError(counted(server))
        assert {code for _, _, code in counted(server)} <= {"DEADLINE_EXCEEDED", "CANCELLED"}
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
    one.requests.labels("Score", "digits", "OK").inc()
    labels = {"method": "Score", "model": "digits", "code": "OK"}
    assert one.registry.get_sample_value("glowserve_requests_total", labels) == 1
    assert other.registry.get_sample_value("glowserve_requests_total", labels) is None
