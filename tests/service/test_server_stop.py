"""A server stops: signals sent to processes with calls, streams and watches in flight."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from glowserve.images import UInt8Array
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.v1 import glow_service_pb2 as pb
from tests.servers import RunServer, ServerProcess, StartServer, listens
from tests.service.stubs import NOT_SERVING, SERVING, connect
from tests.service.wire import raw, refusal, wait_for

UNAVAILABLE, CANCELLED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED
STOPPING = (UNAVAILABLE, "the server is stopping; try another")
PROGRAM = Path(__file__).parent / "programs" / "serve_held.py"
STUCK = ("--max-queue-delay-ms", "600000")
"""Flags of a server whose images wait longer than a test lasts, unless a batch is full."""


def in_flight(server: ServerProcess) -> float:
    return server.metric("glowserve_requests_in_flight")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_every_accepted_call_finish(
    start_server: StartServer, digits: UInt8Array, tmp_path: Path, number: signal.Signals
) -> None:
    """The engines of the process are held until the test has seen it stop."""
    program = (str(PROGRAM), str(tmp_path / "go-on"))
    with start_server(program=program) as server:
        with connect(server.target) as stubs, ThreadPoolExecutor(16) as pool:
            watch = stubs.watch("glowserve.v1.GlowService")
            assert next(watch).status == SERVING
            scores = [
                pool.submit(stubs.glow.Score, pb.ScoreRequest(images=raw(digits[i : i + 1])))
                for i in range(6)
            ]
            request = pb.SampleRequest(n=5, temperature=0)
            streams = [pool.submit(lambda: list(stubs.glow.Sample(request))) for _ in range(4)]
            wait_for(lambda: in_flight(server) == 10)
            server.process.send_signal(number)
            assert next(watch).status == NOT_SERVING
            assert in_flight(server) == 10  # metrics are served until the end
            assert not any(call.done() for call in (*scores, *streams))
            with connect(server.target) as late:
                assert refusal(lambda: late.glow.ListModels(pb.ListModelsRequest())) == STOPPING
            (tmp_path / "go-on").touch()
            assert [len(score.result().scores) for score in scores] == 6 * [1]
            assert [len(stream.result()[0].images.encoded.data) for stream in streams] == 4 * [5]
        code, log = server.wait()
    assert code == 0
    assert "Traceback" not in log
    assert log.rstrip().endswith("stopped")


def test_a_terminal_that_closes_may_send_its_signal_twice(
    start_server: StartServer, digits: UInt8Array, tmp_path: Path
) -> None:
    with start_server(program=(str(PROGRAM), str(tmp_path / "go-on"))) as server:
        with connect(server.target) as stubs, ThreadPoolExecutor(1) as pool:
            watch = stubs.watch("glowserve.v1.GlowService")
            assert next(watch).status == SERVING
            score = pool.submit(stubs.glow.Score, pb.ScoreRequest(images=raw(digits[:1])))
            wait_for(lambda: in_flight(server) == 1)
            server.process.send_signal(signal.SIGHUP)
            assert next(watch).status == NOT_SERVING
            server.process.send_signal(signal.SIGHUP)
            (tmp_path / "go-on").touch()
            assert len(score.result().scores) == 1
        assert server.wait()[0] == 0


def test_under_nohup_a_server_outlives_its_terminal(start_server: StartServer) -> None:
    program = (
        "-c",
        "import os, sys; os.execvp('nohup', ['nohup', sys.executable, '-m', *sys.argv[1:]])",
        "glowserve",
    )
    with start_server(program=program) as server:
        server.process.send_signal(signal.SIGHUP)
        with connect(server.target) as stubs:
            for _ in range(20):
                assert stubs.status() == SERVING
        server.stop()


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2])
def test_a_signal_under_load_loses_no_accepted_call(
    start_server: StartServer, digits: UInt8Array, delay: float
) -> None:
    """Callers send one call after the other. Each is answered in full, or refused as a whole."""
    messages: list[str] = []

    def call_until_refused(first: int) -> grpc.StatusCode:
        request = pb.ScoreRequest(images=raw(digits[first : first + 20]))
        with connect(server.target) as stubs:
            while True:
                try:
                    assert len(stubs.glow.Score(request, timeout=60).scores) == 20
                except grpc.RpcError as error:
                    messages.append(error.details())
                    return error.code()

    with start_server() as server, ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(call_until_refused, first) for first in range(0, 160, 20)]
        wait_for(lambda: in_flight(server) >= 1)
        time.sleep(delay)
        server.process.send_signal(signal.SIGTERM)
        assert {caller.result() for caller in callers} == {UNAVAILABLE}, messages
        code, log = server.wait()
    assert code == 0
    assert "Traceback" not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_right_after_the_ready_line_stops_the_server(
    start_server: StartServer, number: signal.Signals
) -> None:
    with start_server() as server:
        code, log = server.end(number)
    assert code == 0
    assert "Traceback" not in log


def test_a_signal_while_models_are_loaded_stops_the_server(start_server: StartServer) -> None:
    """The signal comes as soon as the port is bound, which is before the models are loaded."""
    with start_server(wait=False) as server:
        wait_for(lambda: listens(server.target))
        server.stop()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_server_at_once(
    start_server: StartServer, digits: UInt8Array, second: signal.Signals
) -> None:
    with (
        start_server(*STUCK, "--drain-seconds", "600") as server,
        connect(server.target) as stubs,
    ):
        watch = stubs.watch()
        assert next(watch).status == SERVING
        call = stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:1])))
        wait_for(lambda: in_flight(server) == 1)
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        assert server.process.poll() is None
        code, _ = server.end(second)
        assert code == -second
        assert call.code() is UNAVAILABLE


def test_calls_and_streams_that_outlast_the_drain_are_ended(
    start_server: StartServer, digits: UInt8Array
) -> None:
    """Two calls wait for a full batch. A stream of full batches would last for hours."""
    flags = (*STUCK, "--drain-seconds", "0.2", "--max-samples-per-call", "100000000")
    with start_server(*flags) as server, connect(server.target) as stubs:
        stream = stubs.glow.Sample(pb.SampleRequest(n=100_000_000, temperature=0))
        next(stream)
        calls = [
            stubs.glow.Encode.future(pb.EncodeRequest(images=raw(digits[:3]))),
            stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:3]))),
        ]
        wait_for(lambda: in_flight(server) == 3)
        server.process.send_signal(signal.SIGTERM)
        assert refusal(lambda: list(stream))[0] in (UNAVAILABLE, CANCELLED)
        assert {call.code() for call in calls} <= {UNAVAILABLE, CANCELLED}
        assert server.wait()[0] == 0


def test_watches_end_with_not_serving_and_do_not_delay_the_end(start_server: StartServer) -> None:
    with start_server("--drain-seconds", "600") as server:
        with connect(server.target) as stubs:
            watches = [stubs.watch(name) for name in ("", "", "nobody")]
            for watch in watches:
                next(watch)
            server.process.send_signal(signal.SIGTERM)
            assert [answer.status for watch in watches for answer in watch] == [NOT_SERVING, NOT_SERVING]
        assert server.wait()[0] == 0


def score_stream(stubs: Any, images: UInt8Array, pauses: Iterator[None]) -> Iterator[str]:
    request = pb.ScoreRequest(images=raw(images))
    for response in stubs.glow.ScoreStream(request for _ in pauses):
        yield "" if response.scores else "no scores"


def model_stream_infer(stubs: Any, images: UInt8Array, pauses: Iterator[None]) -> Iterator[str]:
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=images.shape)
    request = oip.ModelInferRequest(
        model_name="digits", inputs=[tensor], raw_input_contents=[images.tobytes()]
    )
    for response in stubs.inference.ModelStreamInfer(request for _ in pauses):
        yield response.error_message


@pytest.mark.parametrize("method", [score_stream, model_stream_infer])
def test_a_stopping_server_answers_the_requests_of_a_stream_that_it_has_read(
    start_server: StartServer, digits: UInt8Array, method: Any
) -> None:
    """And does not wait for further ones."""

    def pauses() -> Iterator[None]:
        while True:
            yield
            time.sleep(0.02)

    flags = ("--drain-seconds", "600", "--max-queue-delay-ms", "300", "--max-batch-size", "64")
    with start_server(*flags) as server, connect(server.target) as stubs:
        errors: list[str] = []
        stream = method(stubs, digits[:1], pauses())
        reading = threading.Thread(target=lambda: outcome.append(refusal(lambda: errors.extend(stream))))
        outcome: list[Any] = []
        reading.start()
        wait_for(lambda: server.metric("glowserve_queue_length") > 0)
        server.process.send_signal(signal.SIGTERM)
        reading.join(60)
        code, log = server.wait()
    assert outcome == [STOPPING]
    assert set(errors) == {""}
    assert code == 0
    assert "Traceback" not in log
    assert "Task" not in log


def test_an_open_stream_of_reflection_does_not_delay_the_end(
    run_server: RunServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients keep such streams open for good."""
    monkeypatch.setattr("glowserve_service.front.front._LAST_ANSWERS_SECONDS", 0.1)
    ended = threading.Event()

    def requests() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        ended.wait(60)

    with run_server(drain_seconds=600) as server:
        channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        answers = stub.ServerReflectionInfo(requests())  # a call ends with the last reference to it
        assert next(answers).HasField("list_services_response")
    assert refusal(lambda: next(answers))[0] is UNAVAILABLE
    ended.set()
    channel.close()
