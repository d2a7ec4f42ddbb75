"""Spans, as a collector receives them over OTLP."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from glowserve.images import UInt8Array
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.servers import RunServer, failed_start
from tests.service.marks import patches_the_front
from tests.service.stubs import connect
from tests.service.wire import raw

PROGRAMS = Path(__file__).parents[1] / "programs"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = ["preparation", "queue", "execution", "serialization"]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.spans: list[Span] = []
        self._lock = threading.Lock()

    def Export(self, request: Any, context: Any) -> Any:
        with self._lock:
            self.requests.append(request)
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that the environment configures."""
    collector = Collector()
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        yield collector
        server.stop(0).wait()


@contextmanager
def serving(run_server: RunServer, **settings: Any) -> Iterator[GlowServiceStub]:
    """A server that has sent all of its spans when this ends."""
    with run_server(**settings) as server, connect(server) as stubs:
        yield stubs.glow


def score(digits: UInt8Array, n: int) -> pb.ScoreRequest:
    return pb.ScoreRequest(images=raw(digits[:n]))


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def calls(collector: Collector) -> list[Span]:
    """The spans of calls; the others are those of stages."""
    return [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]


def children(collector: Collector, parent: Span) -> list[Span]:
    """In the order in which they began."""
    spans = [span for span in collector.spans if span.parent_span_id == parent.span_id]
    return sorted(spans, key=lambda span: span.start_time_unix_nano)


def test_a_call_is_a_child_of_its_callers_span_and_has_its_stages_as_children(
    collector: Collector, run_server: RunServer, digits: UInt8Array
) -> None:
    before = time.time_ns()
    with serving(run_server, max_queue_delay_ms=50.0) as stub:
        metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "order-17"))
        stub.Score(score(digits, 3), metadata=metadata)
    after = time.time_ns()

    (call,) = calls(collector)
    assert call.name == "glowserve.v1.GlowService/Score"
    assert call.parent_span_id.hex() == PARENT
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert attributes(call) == {
        "rpc.system.name": "grpc",
        "rpc.method": "glowserve.v1.GlowService/Score",
        "rpc.response.status_code": "OK",
        "glowserve.model": "digits",
        "glowserve.version": 1,
        "glowserve.images": 3,
        "glowserve.request_id": "order-17",
    }
    assert call.status.code == Status.STATUS_CODE_UNSET
    stages = children(collector, call)
    # Preparation twice: parsing the request, and drawing the noise.
    assert [span.name for span in stages] == ["preparation", *STAGES]
    times = [time for span in stages for time in (span.start_time_unix_nano, span.end_time_unix_nano)]
    slack = 2_000_000  # ns: a span's start is its end, minus a duration from another clock
    assert all(later >= earlier - slack for earlier, later in pairwise(times))
    assert before < call.start_time_unix_nano <= times[0] + slack
    assert times[-1] <= call.end_time_unix_nano < after
    queue = stages[2]
    assert queue.end_time_unix_nano - queue.start_time_unix_nano >= 50_000_000
    resource = collector.requests[0].resource_spans[0].resource
    assert attributes(resource)["service.name"] == "glowserve"


def test_no_proxy_is_asked_for_a_collector_on_this_machine(
    collector: Collector, run_server: RunServer, digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with (
        run_server() as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.enable_http_proxy", 0)]) as channel,
    ):
        GlowServiceStub(channel).Score(score(digits, 1))
    assert len(calls(collector)) == 1


def test_each_call_of_a_batch_is_in_its_own_trace(
    collector: Collector, run_server: RunServer, digits: UInt8Array
) -> None:
    traces = [f"{i:032x}" for i in range(1, 5)]
    with serving(run_server, max_queue_delay_ms=600_000.0, max_batch_size=4) as stub:
        scores = [
            stub.Score.future(score(digits, 1), metadata=(("traceparent", f"00-{trace}-{PARENT}-01"),))
            for trace in traces
        ]
        for each in scores:
            each.result(60)
    runs = [span for span in collector.spans if span.name == "execution"]
    assert sorted(span.trace_id.hex() for span in runs) == traces
    ends = [span.end_time_unix_nano for span in runs]
    assert max(ends) - min(ends) < 10_000_000
    for trace in traces:
        names = [span.name for span in collector.spans if span.trace_id.hex() == trace]
        assert sorted(names) == sorted(["glowserve.v1.GlowService/Score", "preparation", *STAGES])


def test_a_stream_has_the_stages_of_all_its_messages(collector: Collector, run_server: RunServer) -> None:
    with serving(run_server, max_batch_size=8, instances=1) as stub:
        list(stub.Sample(pb.SampleRequest(n=20, temperature=0)))
    (call,) = calls(collector)
    assert call.parent_span_id == b""  # the caller has no trace
    assert attributes(call)["glowserve.images"] == 20
    names = [span.name for span in children(collector, call)]
    assert (names.count("queue"), names.count("execution")) == (3, 3)
    assert names.count("preparation") == 1 + 3  # the request, and the latents of three batches
    assert names.count("serialization") == 2 * 3  # PNGs and message of each batch


@patches_the_front
def test_a_fault_is_an_error_of_the_server_and_a_refusal_is_not(
    collector: Collector, run_server: RunServer, digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ArithmeticError("a secret of ours")

    with serving(run_server) as stub:
        with pytest.raises(grpc.RpcError):
            stub.Score(pb.ScoreRequest())
        monkeypatch.setattr("glowserve.messages.scores_message", broken)
        with pytest.raises(grpc.RpcError):
            stub.Score(score(digits, 1))
    found = {attributes(span)["rpc.response.status_code"]: span for span in calls(collector)}
    assert found.keys() == {"INVALID_ARGUMENT", "INTERNAL"}
    assert found["INVALID_ARGUMENT"].status.code == Status.STATUS_CODE_UNSET
    assert found["INTERNAL"].status.code == Status.STATUS_CODE_ERROR
    assert "secret" not in found["INTERNAL"].status.message


def test_a_call_that_its_caller_does_not_sample_is_not_exported(
    collector: Collector, run_server: RunServer, digits: UInt8Array
) -> None:
    with serving(run_server) as stub:
        stub.Score(score(digits, 1), metadata=(("traceparent", f"00-{TRACE}-{PARENT}-00"),))
        stub.Score(score(digits, 2), metadata=(("traceparent", "no such thing"),))
    (call,) = calls(collector)
    assert attributes(call)["glowserve.images"] == 2


def test_without_a_collector_opentelemetry_is_not_imported(repository: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [sys.executable, str(PROGRAMS / "server_without_collector.py"), str(repository)]
    assert subprocess.run(command, env=environment, timeout=120, check=False).returncode == 0


COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
ANY_PORT = ("--port", "0", "--metrics-port", "0")


def test_another_protocol_than_grpc_is_refused_at_the_start(repository: Path) -> None:
    variables = COLLECTOR | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    assert failed_start("--repository", str(repository), *ANY_PORT, **variables) == [
        "$OTEL_EXPORTER_OTLP_PROTOCOL is 'http/protobuf'; traces can be sent by grpc only: set it to grpc"
    ]


def test_a_collector_without_opentelemetry_is_refused_at_the_start(repository: Path) -> None:
    command = [sys.executable, str(PROGRAMS / "serve_without_opentelemetry.py"), "serve"]
    command += ["--repository", str(repository), *ANY_PORT, "--device", "cpu"]
    ended = subprocess.run(
        command, env=os.environ | COLLECTOR, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.stderr == (
        "glowserve: $OTEL_EXPORTER_OTLP_ENDPOINT is set and OpenTelemetry is not installed; "
        "install glowserve[otel], or unset it\n"
    )
    assert ended.returncode == 2
