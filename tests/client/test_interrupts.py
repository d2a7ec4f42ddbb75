"""The way of Ctrl-C: from SIGINT in the middle of a call to the end of the client's process."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import glow_service_pb2_grpc
from tests.client.serving import refusal, serve

PROGRAM = Path(__file__).parent / "programs" / "call.py"
# A process that hangs does so for ever; one that does not may be slow on a busy machine.
SECONDS = 60.0


class Unfinished(glow_service_pb2_grpc.GlowServiceServicer):
    """Answers a stream once and other calls never, until they are cancelled; refuses ListModels for 30 seconds."""

    def __init__(self) -> None:
        self.unary_call = threading.Event()
        """Set when a unary call has arrived."""

    def Score(self, request: Any, context: grpc.ServicerContext) -> pb.ScoreResponse:
        self.unary_call.set()
        _wait_for_end(context)
        return pb.ScoreResponse()

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        self.unary_call.set()
        context.abort_with_status(refusal("RESOURCE_EXHAUSTED", 30.0))

    def ScoreStream(self, requests: Any, context: grpc.ServicerContext) -> Iterator[pb.ScoreResponse]:
        yield pb.ScoreResponse(scores=[pb.ImageScore()] * 64)  # the images of one request
        _wait_for_end(context)

    def Sample(self, request: Any, context: grpc.ServicerContext) -> Iterator[pb.SampleResponse]:
        tensor = {"dtype": 1, "shape": [1, 1, 1, 1], "data": b"\7"}
        yield pb.SampleResponse(images=pb.Images(tensor=tensor))
        _wait_for_end(context)


def _wait_for_end(context: grpc.ServicerContext) -> None:
    ended = threading.Event()
    if context.add_callback(ended.set):
        ended.wait(SECONDS)


def interrupted(kind: str) -> tuple[int, str]:
    """The exit code and standard error of a process that gets SIGINT in the middle of a call."""
    servicer = Unfinished()
    with serve(servicer) as target:
        command = [sys.executable, str(PROGRAM), target, kind]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                if kind in ("unary", "asynchronous", "pausing"):
                    assert servicer.unary_call.wait(SECONDS)
                elif kind != "begun":
                    assert process.stdout.readline()
                if kind != "begun":
                    process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=SECONDS)
            finally:
                process.kill()
    return process.returncode, errors


@pytest.mark.parametrize(
    ("kind", "runs"),
    [
        ("unary", 20),
        ("samples", 20),
        ("scores", 8),
        ("never_closed", 4),
        ("begun", 4),
        ("asynchronous", 4),
        ("pausing", 4),
    ],
)
def test_a_process_ends_after_ctrl_c_in_the_middle_of_a_call(kind: str, runs: int) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(interrupted, [kind] * runs)) == [(130, "")] * runs
