"""Streams that their callers have left: they end later than their calls, whose contexts gRPC has freed by then.

Newer releases of grpcio than that of constraints.txt crash the process if such a context is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from glowserve_service.config import ServiceConfig
from glowserve_service.errors import UnavailableError
from glowserve_service.front.call import Call
from glowserve_service.front.front import SERVICE_NAME
from glowserve_service.front.middleware import CallMiddleware
from glowserve_service.front.requests import Requests
from glowserve_service.observability.metrics import Metrics

from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceServicer, add_GlowServiceServicer_to_server


class Servicer(GlowServiceServicer):
    """Sample answers once. Then it waits, and when it is closed it may fail."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    async def Sample(self, request: pb.SampleRequest, call: Call) -> AsyncIterator[pb.SampleResponse]:
        try:
            yield pb.SampleResponse(seed=1)
        finally:
            if self._error:
                raise self._error


class Context:
    """In place of gRPC's. It is freed when the task of its call has ended."""

    def __init__(self) -> None:
        self.task: asyncio.Task[Any] | None = None
        self.aborted = False

    async def read(self) -> bytes:
        self._use()
        return b""

    async def abort(self, *_: Any) -> None:
        self._use()
        self.aborted = True

    def peer(self) -> str:
        self._use()
        return "ipv4:127.0.0.1:50000"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        self._use()
        return ()

    def set_trailing_metadata(self, _: Any) -> None:
        self._use()

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        self._use()
        return ()

    def time_remaining(self) -> None:  # of what the process keeps
        return None

    def _use(self) -> None:
        assert self.task is None or not self.task.done(), "the context is freed"


async def leave(error: Exception | None = None) -> tuple[Context, Metrics, BaseException | None]:
    """A caller leaves Sample after an answer; the context, the metrics, and what the end of the stream raises."""
    metrics = Metrics()
    middleware = CallMiddleware([SERVICE_NAME], metrics, ServiceConfig(repository=Path()))
    add_GlowServiceServicer_to_server(Servicer(error), middleware)
    middleware.accept()
    details: Any = SimpleNamespace(method=f"/{SERVICE_NAME}/Sample", invocation_metadata=())
    handler: Any = middleware.service(details)
    context = Context()
    responses = handler.stream_stream(None, context)
    context.task = asyncio.create_task(anext(responses))
    assert await context.task
    await asyncio.sleep(0)  # what gRPC frees, it frees now
    try:
        await responses.aclose()
    except BaseException as raised:
        return context, metrics, raised
    return context, metrics, None


def counted(metrics: Metrics, code: str) -> float | None:
    labels = {"method": "Sample", "model": "", "code": code}
    return metrics.registry.get_sample_value("glowserve_requests_total", labels)


async def test_a_stream_that_its_caller_has_left_is_counted_and_logged_without_its_context(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    _, metrics, raised = await leave()
    assert raised is None
    assert counted(metrics, "CANCELLED") == 1
    assert "ipv4:127.0.0.1:50000" in caplog.text


async def test_an_error_at_the_end_of_a_stream_that_its_caller_has_left_aborts_nothing() -> None:
    error = UnavailableError("the model was replaced")
    context, metrics, raised = await leave(error)
    assert raised is error
    assert not context.aborted
    assert counted(metrics, "UNAVAILABLE") == 1


async def test_no_request_is_read_from_a_call_that_has_ended() -> None:
    context, call = Context(), Call("ScoreStream", "1")
    requests = Requests(context, asyncio.Event(), call)
    found = [await anext(aiter(requests))]
    context.task = asyncio.create_task(asyncio.sleep(0))
    await context.task
    call.is_open = False
    found += [each async for each in requests]
    assert found == [b""]
    assert not requests.cut_short
