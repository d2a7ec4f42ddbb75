"""The middleware: what it makes of errors, deadlines and cancellations, and how it lets a server stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from glowserve_service.config import ServiceConfig
from glowserve_service.errors import QueueFullError
from glowserve_service.front.call import Call
from glowserve_service.front.front import SERVICE_NAME
from glowserve_service.front.middleware import INTERNAL_ERROR, REQUEST_ID, CallMiddleware
from glowserve_service.observability.metrics import Metrics

from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import (
    GlowServiceServicer,
    GlowServiceStub,
    add_GlowServiceServicer_to_server,
)

STARTING = (grpc.StatusCode.UNAVAILABLE, "the server is starting; try again")
STOPPING = (grpc.StatusCode.UNAVAILABLE, "the server is stopping; try another")


class Servicer(GlowServiceServicer):
    """Keeps the calls that it gets. Score and Sample wait until the test lets them end."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.begun, self.may_end, self.closed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.error: Exception | None = None

    async def Score(self, request: pb.ScoreRequest, call: Call) -> pb.ScoreResponse:
        self.calls.append(call)
        self.begun.set()
        await self.may_end.wait()
        if self.error:
            raise self.error
        return pb.ScoreResponse(seed=request.seed)

    async def Sample(self, request: pb.SampleRequest, call: Call) -> AsyncIterator[pb.SampleResponse]:
        try:
            yield pb.SampleResponse(seed=1)
            await self.may_end.wait()
            yield pb.SampleResponse(seed=2)
        finally:
            self.closed.set()

    async def ScoreStream(
        self, requests: AsyncIterator[pb.ScoreRequest], call: Call
    ) -> AsyncIterator[pb.ScoreResponse]:
        async for request in requests:
            yield pb.ScoreResponse(seed=request.seed)

    async def ListModels(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        return pb.ListModelsResponse()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
def middleware(metrics: Metrics, servicer: Servicer) -> CallMiddleware:
    """It accepts calls, and lets ListModels in even when it does not."""
    middleware = CallMiddleware(
        [SERVICE_NAME], metrics, ServiceConfig(repository=Path()), always=["ListModels"]
    )
    add_GlowServiceServicer_to_server(servicer, middleware)
    middleware.accept()
    return middleware


@pytest.fixture
async def glow(middleware: CallMiddleware) -> AsyncIterator[Any]:
    """A stub of a server with the middleware and the servicer."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((middleware,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield GlowServiceStub(channel)
    await server.stop(None)


async def ending(call: Any) -> tuple[grpc.StatusCode, str]:
    return await call.code(), await call.details()


def counted(metrics: Metrics, method: str, code: str) -> float | None:
    labels = {"method": method, "model": "", "code": code}
    return metrics.registry.get_sample_value("glowserve_requests_total", labels)


def in_flight(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("glowserve_requests_in_flight")


# A call


async def test_a_servicer_gets_the_callers_id_and_deadline(glow: Any, servicer: Servicer) -> None:
    servicer.may_end.set()
    call = glow.Score(pb.ScoreRequest(seed=3), metadata=((REQUEST_ID, "order-17"),), timeout=1000)
    assert (await call).seed == 3
    assert (REQUEST_ID, "order-17") in [tuple(pair) for pair in await call.trailing_metadata()]
    (seen,) = servicer.calls
    assert (seen.method, seen.request_id) == ("Score", "order-17")
    assert 900 < seen.deadline - seen.began <= 1010  # gRPC rounds a deadline up
    assert {"preparation", "serialization"} <= seen.seconds.keys()


async def test_a_call_is_counted_before_its_caller_learns_of_its_end(
    glow: Any, servicer: Servicer, metrics: Metrics
) -> None:
    servicer.may_end.set()
    for i in range(1, 50):
        await glow.Score(pb.ScoreRequest())
        assert (counted(metrics, "Score", "OK"), in_flight(metrics)) == (i, 0)


async def test_an_error_becomes_its_status(glow: Any, servicer: Servicer, metrics: Metrics) -> None:
    servicer.may_end.set()
    servicer.error = QueueFullError("7 images wait already")
    call = glow.Score(pb.ScoreRequest())
    assert await ending(call) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "7 images wait already")
    assert counted(metrics, "Score", "RESOURCE_EXHAUSTED") == 1


async def test_an_unforeseen_error_is_logged_and_its_caller_learns_nothing_of_it(
    glow: Any, servicer: Servicer, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    servicer.may_end.set()
    servicer.error = ArithmeticError("a secret")
    call = glow.Score(pb.ScoreRequest())
    assert await ending(call) == (grpc.StatusCode.INTERNAL, INTERNAL_ERROR)
    assert counted(metrics, "Score", "INTERNAL") == 1
    assert "ArithmeticError: a secret" in caplog.text


# Cancellations and deadlines


async def test_a_cancelled_call_is_counted_as_cancelled(
    glow: Any, servicer: Servicer, metrics: Metrics
) -> None:
    call = glow.Score(pb.ScoreRequest(), timeout=1000)
    await servicer.begun.wait()
    assert in_flight(metrics) == 1
    call.cancel()
    async with asyncio.timeout(60):
        while in_flight(metrics):
            await asyncio.sleep(0.001)
    assert counted(metrics, "Score", "CANCELLED") == 1


async def test_cancelling_a_stream_closes_the_servicers_generator(glow: Any, servicer: Servicer) -> None:
    call = glow.Sample(pb.SampleRequest())
    assert (await call.read()).seed == 1
    call.cancel()
    await asyncio.wait_for(servicer.closed.wait(), 60)


class AbortError(Exception):
    """Raised by `Context.abort`, as by gRPC's."""


class Context:
    """As much of gRPC's context as the middleware uses."""

    def __init__(self, remaining: float | None) -> None:
        self._remaining = remaining
        self.aborted_with: tuple[grpc.StatusCode, str] | None = None

    async def read(self) -> bytes:
        return b""

    def time_remaining(self) -> float | None:
        return self._remaining

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def set_trailing_metadata(self, metadata: Any) -> None:
        pass

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def peer(self) -> str:
        return "nobody"

    def add_done_callback(self, callback: Any) -> None:
        pass

    async def abort(self, code: grpc.StatusCode, message: str, metadata: Any) -> None:
        self.aborted_with = code, message
        raise AbortError


def handler_of(middleware: CallMiddleware, method: str) -> Any:
    """The handler that gRPC gets for a call."""
    details: Any = SimpleNamespace(method=f"/{SERVICE_NAME}/{method}", invocation_metadata=())
    return middleware.service(details)


@pytest.mark.parametrize(
    ("remaining", "code"),
    [(None, "CANCELLED"), (1000.0, "CANCELLED"), (0.0, "DEADLINE_EXCEEDED")],
    ids=["no deadline", "a far deadline", "a deadline that had passed on arrival"],
)
async def test_a_call_that_grpc_ends_is_late_if_its_deadline_has_passed(
    middleware: CallMiddleware, servicer: Servicer, metrics: Metrics, remaining: float | None, code: str
) -> None:
    call = handler_of(middleware, "Score").stream_unary(None, Context(remaining))
    task = asyncio.ensure_future(call)
    await servicer.begun.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert counted(metrics, "Score", code) == 1


# Starting and stopping


async def test_calls_are_refused_before_accept(servicer: Servicer, metrics: Metrics) -> None:
    middleware = CallMiddleware(
        [SERVICE_NAME], metrics, ServiceConfig(repository=Path()), always=["ListModels"]
    )
    add_GlowServiceServicer_to_server(servicer, middleware)
    context = Context(None)
    with pytest.raises(AbortError):
        await handler_of(middleware, "Score").stream_unary(None, context)
    assert context.aborted_with == STARTING
    assert await handler_of(middleware, "ListModels").stream_unary(None, Context(None)) == b""
    assert not middleware.accepts
    assert metrics.registry.get_sample_value("glowserve_ready") == 0


async def test_calls_are_refused_after_refuse(
    glow: Any, servicer: Servicer, middleware: CallMiddleware, metrics: Metrics
) -> None:
    servicer.may_end.set()
    assert middleware.accepts
    assert await glow.Score(pb.ScoreRequest()) == pb.ScoreResponse()
    middleware.refuse()
    assert not middleware.accepts
    assert await ending(glow.Score(pb.ScoreRequest())) == STOPPING
    assert await glow.ListModels(pb.ListModelsRequest()) == pb.ListModelsResponse()
    assert counted(metrics, "Score", "UNAVAILABLE") == 1


async def test_a_server_that_refuses_ends_its_streams_of_requests_after_the_answers(
    glow: Any, middleware: CallMiddleware
) -> None:
    stream = glow.ScoreStream()
    for seed in range(3):
        await stream.write(pb.ScoreRequest(seed=seed))
    assert [(await stream.read()).seed for _ in range(3)] == [0, 1, 2]
    middleware.refuse()
    assert await ending(stream) == STOPPING


async def test_the_middleware_is_idle_once_the_last_open_call_has_ended(
    glow: Any, servicer: Servicer, middleware: CallMiddleware
) -> None:
    await middleware.idle()
    calls = [glow.Score(pb.ScoreRequest()) for _ in range(3)]
    async with asyncio.timeout(60):
        while len(servicer.calls) < 3:
            await asyncio.sleep(0.001)
    idle = asyncio.create_task(middleware.idle())
    calls.pop().cancel()
    await asyncio.wait([idle], timeout=0.05)
    assert not idle.done()
    servicer.may_end.set()
    await asyncio.wait_for(idle, 60)
    for call in calls:
        await call


async def test_quiet_returns_when_no_call_has_arrived_for_a_while(
    glow: Any, servicer: Servicer, middleware: CallMiddleware
) -> None:
    servicer.may_end.set()
    await glow.Score(pb.ScoreRequest())
    began = time.monotonic()
    await middleware.quiet()
    assert 0.2 <= time.monotonic() - began < 0.8


async def test_quiet_does_not_wait_for_good_for_callers_that_go_on(
    glow: Any, servicer: Servicer, middleware: CallMiddleware
) -> None:
    servicer.may_end.set()

    async def call_again_and_again() -> None:
        while True:
            await glow.Score(pb.ScoreRequest())

    caller = asyncio.create_task(call_again_and_again())
    await asyncio.wait_for(middleware.quiet(), 60)
    caller.cancel()
    await asyncio.wait([caller])


async def test_quiet_waits_as_long_as_open_calls_end(
    glow: Any, servicer: Servicer, middleware: CallMiddleware
) -> None:
    streams = [glow.ScoreStream() for _ in range(4)]
    for stream in streams:
        await stream.write(pb.ScoreRequest())
        await stream.read()
    quiet = asyncio.create_task(middleware.quiet())
    for stream in streams:
        await asyncio.sleep(0.6)
        assert not quiet.done()
        await stream.done_writing()
    await asyncio.wait_for(quiet, 60)


async def test_quiet_has_seen_the_calls_that_reach_the_event_loop_late(
    glow: Any, servicer: Servicer, middleware: CallMiddleware, metrics: Metrics
) -> None:
    """As on a machine that is short of processor time: a turn of the loop takes much longer than it should."""
    await glow.ListModels(pb.ListModelsRequest())
    middleware.refuse()
    quiet = asyncio.create_task(middleware.quiet())
    calls = [asyncio.ensure_future(glow.Score(pb.ScoreRequest())) for _ in range(8)]
    while not quiet.done():
        time.sleep(0.1)
        await asyncio.sleep(0)
    assert counted(metrics, "Score", "UNAVAILABLE") == 8
    await asyncio.gather(*calls, return_exceptions=True)
