"""Fixtures of the fuzz tests: a service to send everything to, and a check that this left it unharmed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from glowserve.images import UInt8Array
from glowserve.messages import images_message
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.soak.conftest import Serve
from tests.soak.fuzz.calls import send_blocking
from tests.soak.fuzz.methods import Method, all_methods
from tests.soak.fuzz.pictures import bombs
from tests.soak.service import Service
from tests.soak.waiting import wait_until

MORE_MEMORY_BYTES = 128 * 2**20
"""How much memory the service may hold in addition after a test: it keeps what large pictures needed."""
MORE_THREADS = 16
"""gRPC and the pools start threads when they need them."""

# How the service's log begins a line that something else in the process wrote to standard error.
_OF_STDERR = re.compile(r"^\S+ \S+ WARNING stderr: ", re.MULTILINE)
# gRPC's own lines: its core logs bytes that it refuses, and its Python part, without the logging module, a peer that
# went away before it learned that its method's name is not UTF-8.
_GRPC_LINES = re.compile(
    r"^(?:[EWI]0000 \d\d:|WARNING: All log messages before absl).*\n"
    r"|(?:^.*Failed sending error status from server\n)?"
    r"^Traceback .*\n(?:^  .*\n)+^grpc\._cython\.cygrpc\.ExecuteBatchError.*\n",
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def methods(digits: UInt8Array) -> list[Method]:
    """Every method of the service."""
    return all_methods(digits)


@pytest.fixture(scope="module")
def score(methods: list[Method]) -> Method:
    """GlowService.Score."""
    return next(method for method in methods if method.name == "Score")


@pytest.fixture(scope="module")
def target(serve: Serve, attributed_repository: Path) -> Iterator[Service]:
    """A service that logs only errors and allows few samples per call, and that has seen large pictures."""
    flags = ("--log-level", "error", "--log-format", "text", "--max-queue-size", "1024")
    flags = (*flags, "--max-samples-per-call", "64", "--max-message-mib", "8")
    with serve(*flags, models=attributed_repository) as service:
        with grpc.insecure_channel(service.target) as channel:
            for bomb in 2 * bombs():
                with contextlib.suppress(grpc.RpcError):
                    GlowServiceStub(channel).Score(pb.ScoreRequest(images=images_message([bomb])))
        yield service
        service.process.terminate()
        assert service.process.wait(60) == 0
        assert not log_without_grpc(service)


@pytest.fixture
def unharmed(target: Service, methods: list[Method]) -> Iterator[None]:
    """Checks after a test that the service's answers, memory, threads, files and log are what they were before."""
    answers, before = known_answers(target, methods), target.snapshot()
    yield
    assert target.process.poll() is None, log_without_grpc(target)
    assert known_answers(target, methods) == answers
    wait_until(lambda: target.total("glowserve_requests_in_flight") == 0, "no call is in flight")
    wait_until(lambda: target.total("glowserve_queue_length") == 0, "no image waits")
    assert target.total("glowserve_requests_total", code="INTERNAL") == 0
    after = target.snapshot()
    more = after.rss - before.rss
    print(f"memory {before.rss / 2**20:.0f} MiB, {more / 2**20:+.0f} MiB after; {after.threads} threads")
    assert more < MORE_MEMORY_BYTES
    assert after.threads <= before.threads + MORE_THREADS
    wait_until(lambda: target.snapshot().files <= before.files + 2, "no more files are open than before")
    assert not log_without_grpc(target)


def log_without_grpc(service: Service) -> str:
    """The service's log without gRPC's own lines."""
    return _GRPC_LINES.sub("", _OF_STDERR.sub("", service.log.read_text()))


def known_answers(service: Service, methods: list[Method]) -> list[bytes]:
    """The responses to valid requests with seeds, each sent alone; they are the same to the bit every time."""
    deterministic = ("Score", "Explain", "Encode", "Decode", "Manipulate", "ModelInfer", "Sample")
    responses = list[bytes]()
    with grpc.insecure_channel(service.target) as channel:
        for method in methods:
            if method.name in deterministic:
                for message in method.valid:
                    status, text, parts = send_blocking(channel, method, message)
                    assert status == "OK", text
                    responses += parts
    return responses
