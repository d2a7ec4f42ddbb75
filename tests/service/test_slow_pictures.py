"""Decoding that takes long ends with its call, its deadline or its service, and holds up nobody else."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

import grpc
import pytest

from glowserve.images import UInt8Array, encode_png
from glowserve.v1 import glow_service_pb2 as pb
from tests.servers import ServerProcess, StartServer
from tests.service.decoder_processes import (
    decoder_processes,
    lives,
    processor_seconds,
    slow_pictures,
)
from tests.service.stubs import connect
from tests.service.wire import encoded, refusal, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")

SOON_SECONDS = 5.0
"""Far less than what the picture takes."""


@pytest.fixture(scope="module")
def slow_request() -> pb.ScoreRequest:
    return pb.ScoreRequest(images=encoded(*slow_pictures()))


@pytest.fixture
def server(start_server: StartServer) -> Iterator[ServerProcess]:
    with start_server("--drain-seconds", "0.5") as server:
        yield server


def busy(server: ServerProcess) -> int:
    """The process that decodes a slow picture, once there is one."""
    started = {p: processor_seconds(p) for p in decoder_processes(server.process.pid)}
    found: list[int] = []

    def look() -> bool:
        found[:] = [p for p, seconds in started.items() if processor_seconds(p) > seconds + 0.2]
        return bool(found)

    wait_for(look)
    return found[0]


def wait_for_end(process: int) -> None:
    began = time.monotonic()
    wait_for(lambda: not lives(process))
    assert time.monotonic() - began < SOON_SECONDS


def test_processes_are_there_before_the_first_call(server: ServerProcess) -> None:
    assert len(decoder_processes(server.process.pid)) >= 2


def test_a_cancelled_call_ends_its_decoding_and_others_go_on(
    server: ServerProcess, slow_request: pb.ScoreRequest, digits: UInt8Array
) -> None:
    with connect(server.target) as stubs:
        call = stubs.glow.Score.future(slow_request)
        process = busy(server)
        files = [encode_png(each) for each in digits[:20]]
        assert len(stubs.glow.Score(pb.ScoreRequest(images=encoded(*files)), timeout=60).scores) == 20
        assert lives(process)
        call.cancel()
        wait_for_end(process)
        assert server.metric("glowserve_failed_decodes_total") == 0
    server.stop()


def test_a_call_past_its_deadline_ends_its_decoding(
    server: ServerProcess, slow_request: pb.ScoreRequest
) -> None:
    with connect(server.target) as stubs:
        call = stubs.glow.Score.future(slow_request, timeout=4)
        process = busy(server)
        with pytest.raises(grpc.RpcError):
            call.result()
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_for_end(process)


def test_a_stream_that_is_cancelled_ends_its_decoding(
    server: ServerProcess, slow_request: pb.ScoreRequest
) -> None:
    with connect(server.target) as stubs:
        stream = stubs.glow.ScoreStream(iter([slow_request]))
        process = busy(server)
        stream.cancel()
        wait_for_end(process)


def test_a_stopping_service_ends_its_decoding(server: ServerProcess, slow_request: pb.ScoreRequest) -> None:
    with connect(server.target) as stubs:
        call = stubs.glow.Score.future(slow_request)
        process = busy(server)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 2 * SOON_SECONDS
        assert not lives(process)
        assert call.exception()


def test_a_killed_service_leaves_no_process(server: ServerProcess, slow_request: pb.ScoreRequest) -> None:
    with connect(server.target) as stubs:
        call = stubs.glow.Score.future(slow_request)
        busy(server)
        processes = decoder_processes(server.process.pid)
        server.end(signal.SIGKILL)
        for process in processes:
            wait_for_end(process)
        assert call.exception()


def test_ctrl_c_lets_a_call_finish(start_server: StartServer) -> None:
    """A terminal sends SIGINT to the service's whole process group."""
    slow = pb.ScoreRequest(images=encoded(*slow_pictures(10)))
    with start_server("--drain-seconds", "60", process_group=0) as server, connect(server.target) as stubs:
        call = stubs.glow.Score.future(slow, timeout=60)
        busy(server)
        os.killpg(server.process.pid, signal.SIGINT)
        assert len(call.result().scores) == 10
        code, log = server.wait()
        assert code == 0, log


def test_a_crash_fails_its_call_alone_and_is_counted_and_logged(
    server: ServerProcess, slow_request: pb.ScoreRequest, digits: UInt8Array
) -> None:
    with connect(server.target) as stubs:
        call = stubs.glow.Score.future(slow_request)
        os.kill(busy(server), signal.SIGSEGV)
        code, _ = refusal(call.result)
        assert code is grpc.StatusCode.INTERNAL
        files = [encode_png(each) for each in digits[:20]]
        assert len(stubs.glow.Score(pb.ScoreRequest(images=encoded(*files))).scores) == 20
        assert server.metric("glowserve_failed_decodes_total") == 1
    _, log = server.end()
    assert "ended: exit code -11" in log


def test_processes_that_ended_are_reaped(server: ServerProcess) -> None:
    """In a container the service is the first process, and nobody else collects its children."""
    processes = decoder_processes(server.process.pid)
    for process in processes:
        os.kill(process, signal.SIGKILL)
    wait_for(lambda: not processes & decoder_processes(server.process.pid))
