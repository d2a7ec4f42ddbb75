"""Spans, as a collector receives them over OTLP."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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
from glowserve.v1 import tensor_pb2
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub

RunServer = Callable[..., Any]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = ["preparation", "queue", "execution", "serialization"]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

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
    """One that the environment names."""
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
    """What has not been sent is when this ends."""
    with run_server(**settings) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield GlowServiceStub(channel)


def score(digits: UInt8Array, n: int) -> pb.ScoreRequest:
    images = digits[:n]
    return pb.ScoreRequest(
        images=pb.Images(
            tensor=tensor_pb2.Tensor(dtype="DATA_TYPE_UINT8", shape=images.shape, data=images.tobytes())
        )
    )


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def children(collector: Collector, parent: Span) -> list[Span]:
    """By their beginnings."""
    spans = [span for span in collector.spans if span.parent_span_id == parent.span_id]
    return sorted(spans, key=lambda span: span.start_time_unix_nano)


def test_a_call_is_a_span_inside_its_callers_with_its_stages_inside_it(
    collector: Collector, run_server: RunServer, digits: UInt8Array
) -> None:
    before = time.time_ns()
    with serving(run_server, max_queue_delay_ms=50.0) as stub:
        metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "order-17"))
        stub.Score(score(digits, 3), metadata=metadata)
    after = time.time_ns()

    (call,) = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
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
    # Read, draw the noise; wait, run; write.
    assert [span.name for span in stages] == ["preparation", *STAGES]
    times = [time for span in stages for time in (span.start_time_unix_nano, span.end_time_unix_nano)]
    slack = 2_000_000  # a span's beginning is its end less what a monotonic clock says
    assert all(later >= earlier - slack for earlier, later in pairwise(times))
    assert before < call.start_time_unix_nano <= times[0] + slack
    assert times[-1] <= call.end_time_unix_nano < after
    queue = stages[2]
    assert queue.end_time_unix_nano - queue.start_time_unix_nano >= 50_000_000
    resource = collector.requests[0].resource_spans[0].resource
    assert attributes(resource)["service.name"] == "glowserve"


def test_calls_of_one_batch_are_each_in_their_own_trace(
    collector: Collector, run_server: RunServer, digits: UInt8Array
) -> None:
    traces = [f"{i:032x}" for i in range(1, 5)]
    with serving(run_server, max_queue_delay_ms=600_000.0, max_batch_size=4) as stub:
        calls = [
            stub.Score.future(score(digits, 1), metadata=(("traceparent", f"00-{trace}-{PARENT}-01"),))
            for trace in traces
        ]
        for call in calls:
            call.result(60)
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
    (call,) = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert call.parent_span_id == b""  # its caller has no trace
    assert attributes(call)["glowserve.images"] == 20
    names = [span.name for span in children(collector, call)]
    assert (names.count("queue"), names.count("execution")) == (3, 3)
    assert names.count("preparation") == 1 + 3  # the request, and latents
    assert names.count("serialization") == 2 * 3  # pictures, and messages


def test_a_refusal_is_no_error_of_the_server_and_a_fault_is(
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
    found = {
        attributes(span)["rpc.response.status_code"]: span
        for span in collector.spans
        if span.kind == Span.SPAN_KIND_SERVER
    }
    assert found.keys() == {"INVALID_ARGUMENT", "INTERNAL"}
    assert found["INVALID_ARGUMENT"].status.code == Status.STATUS_CODE_UNSET
    assert found["INTERNAL"].status.code == Status.STATUS_CODE_ERROR
    assert "secret" not in found["INTERNAL"].status.message


def test_what_the_caller_does_not_sample_is_not_sent(
    collector: Collector, run_server: RunServer, digits: UInt8Array
) -> None:
    with serving(run_server) as stub:
        stub.Score(score(digits, 1), metadata=(("traceparent", f"00-{TRACE}-{PARENT}-00"),))
        stub.Score(score(digits, 2), metadata=(("traceparent", "no such thing"),))
    (call,) = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert attributes(call)["glowserve.images"] == 2


def test_without_a_collector_nothing_of_opentelemetry_is_imported(repository: Path) -> None:
    code = (
        "import asyncio, sys; from glowserve_service.config import ServiceConfig; "
        "from glowserve_service.server import Server; "
        f"Server(ServiceConfig(repository={str(repository)!r})); "
        "sys.exit('opentelemetry' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


@pytest.mark.parametrize(
    ("before", "variables", "sentence"),
    [
        (
            "import sys; sys.modules['opentelemetry'] = None; ",
            {},
            "$OTEL_EXPORTER_OTLP_ENDPOINT is set and OpenTelemetry is not installed; install glowserve[otel], or "
            "unset it",
        ),
        (
            "",
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            "$OTEL_EXPORTER_OTLP_PROTOCOL is 'http/protobuf'; traces are sent by grpc alone, so set that",
        ),
    ],
)
def test_traces_that_cannot_be_sent_are_refused_at_the_start(
    repository: Path, before: str, variables: dict[str, str], sentence: str
) -> None:
    code = f"{before}import sys; from glowserve.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "serve", "--repository", str(repository)]
    command += ["--port", "0", "--metrics-port", "0", "--device", "cpu"]
    ended = subprocess.run(
        command,
        env=os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in ended.stderr
    assert ended.stderr == f"glowserve: {sentence}\n"
    assert ended.returncode == 2
