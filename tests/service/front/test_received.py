"""What callers send and what is open is bounded as a whole, and counts until it is answered and freed."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service.errors import BytesExhaustedError
from glowserve_service.front import received
from glowserve_service.front.received import Holding, ReceivedBytes
from glowserve_service.scheduling.cpu_pool import CpuPool
from glowserve_service.scheduling.decoders import Decoders
from glowserve_service.scheduling.ticket import Ticket
from glowserve_service.server import Server
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status

from glowserve.oip import grpc_service_pb2 as oip
from glowserve.v1 import glow_service_pb2 as pb
from tests.servers import RunServer
from tests.service.marks import has_whole_limits, patches_the_front
from tests.service.metrics import ended, in_flight, value
from tests.service.stubs import SERVING, Stubs, connect
from tests.service.wire import encoded, raw, refusal, wait_for
from tests.soak.large_requests import FORMS, field

EXHAUSTED, INVALID = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT
WAITING: dict[str, Any] = {"max_queue_delay_ms": 600_000.0, "drain_seconds": 0.0}
SMALL: dict[str, Any] = {"max_message_mib": 4, "max_received_mib": 4}
IMAGE = pb.ScoreRequest(images=raw(np.zeros((1, 8, 8, 1), np.uint8)))
LONG = IMAGE.SerializeToString() + field(100, bytes(3 * 2**20))
"""A good request with an unknown field."""


def score(stubs: Stubs, request: bytes) -> Any:
    return stubs.channel.unary_unary("/glowserve.v1.GlowService/Score").future(request, timeout=60)


def held(server: Server) -> float:
    return value(server, "received_bytes")


def reason_of(error: grpc.RpcError) -> str:
    """Of an error that says how long to wait, too."""
    details = rpc_status.from_call(error).details
    assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in details)
    info = error_details_pb2.ErrorInfo()
    details[0].Unpack(info)
    return str(info.reason)


# The budget


@has_whole_limits
def test_requests_over_the_budget_are_refused_and_small_ones_still_fit(run_server: RunServer) -> None:
    with run_server(**WAITING, **SMALL) as server, connect(server) as stubs:
        first = score(stubs, LONG)
        wait_for(lambda: held(server) == len(LONG))
        with pytest.raises(grpc.RpcError) as caught:
            score(stubs, LONG).result()
        assert caught.value.code() is EXHAUSTED
        assert f"the request has {len(LONG)} bytes and the server holds {len(LONG)}" in caught.value.details()
        assert reason_of(caught.value) == "TOO_MANY_BYTES"
        assert ended(server, "Score", "RESOURCE_EXHAUSTED", model="") == 1
        small = score(stubs, IMAGE.SerializeToString())
        wait_for(lambda: held(server) == len(LONG) + IMAGE.ByteSize())
        for call in (first, small):
            call.cancel()
        wait_for(lambda: held(server) == 0)


@has_whole_limits
def test_a_request_of_a_stream_counts_until_it_is_answered(run_server: RunServer) -> None:
    with run_server(**SMALL) as server, connect(server) as stubs:
        may_end = threading.Event()

        def requests() -> Iterator[bytes]:
            yield from [LONG] * 5
            may_end.wait(60)

        stream = stubs.channel.stream_stream("/glowserve.v1.GlowService/ScoreStream")(requests(), timeout=60)
        assert len([next(stream) for _ in range(5)]) == 5
        wait_for(lambda: held(server) == 0)
        may_end.set()
        assert not list(stream)


@has_whole_limits
def test_a_stream_over_the_budget_ends_with_the_index_of_its_request(run_server: RunServer) -> None:
    with run_server(**WAITING, **SMALL) as server, connect(server) as stubs:
        first = score(stubs, LONG)
        wait_for(lambda: held(server) == len(LONG))
        stream = stubs.channel.stream_stream("/glowserve.v1.GlowService/ScoreStream")(iter([LONG]))
        code, message = refusal(lambda: list(stream))
        assert (code, message[:30]) == (EXHAUSTED, f"requests[0]: the request has {len(LONG)}"[:30])
        first.cancel()


@patches_the_front
def test_refused_requests_are_freed_without_the_garbage_collector(run_server: RunServer) -> None:
    """gRPC keeps the exception that ends a call in a cycle of references."""
    bad = pb.ScoreRequest(images=encoded(bytes(3 * 2**20))).SerializeToString()
    with run_server(**SMALL) as server, connect(server) as stubs:
        gc.disable()
        try:
            for _ in range(3):
                assert refusal(score(stubs, bad).result)[0] is INVALID
                wait_for(lambda: held(server) == 0)
        finally:
            gc.enable()


async def test_a_cancelled_call_counts_as_long_as_a_thread_works_on_it() -> None:
    budget, may_end = ReceivedBytes(100, 100), threading.Event()
    pool = CpuPool(1, 100, Decoders(0, 1, 1, lambda _: None))

    async def call() -> None:
        holding = Holding(budget)
        holding.add(40)
        try:
            work = holding.kept(lambda: may_end.wait(60))
            await pool.run(work, Ticket(), images=1, size=2**20)
        finally:
            holding.end()

    calls = [asyncio.create_task(call()) for _ in range(2)]  # one works, one waits for the thread
    await asyncio.sleep(0.05)
    for task in calls:
        task.cancel()
    await asyncio.wait(calls)
    assert budget.held == 80
    with pytest.raises(BytesExhaustedError):
        budget.take(21)
    may_end.set()
    del calls, task
    await asyncio.to_thread(pool.close)
    assert budget.held == 0


# Requests that have not arrived


@contextmanager
def without_requests(
    stubs: Stubs, calls: int, method: str = "glowserve.v1.GlowService/Score"
) -> Iterator[list[Any]]:
    """Calls that do not send their request."""
    may_end = threading.Event()

    def requests() -> Iterator[bytes]:
        may_end.wait(60)
        yield from ()

    begin = stubs.channel.stream_unary(f"/{method}").future
    try:
        yield [begin(requests()) for _ in range(calls)]
    finally:
        may_end.set()


def test_a_call_without_a_request_is_invalid(run_server: RunServer) -> None:
    with run_server() as server, connect(server) as stubs:
        with without_requests(stubs, 2) as calls:
            wait_for(lambda: in_flight(server) == 2)
            calls[0].cancel()
            wait_for(lambda: ended(server, "Score", "CANCELLED", model="") == 1)
        assert refusal(calls[1].result) == (INVALID, "the call has no request")
        assert in_flight(server) == 0


@patches_the_front
def test_a_request_that_does_not_arrive_ends(run_server: RunServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(received, "_LONGEST_SECONDS", 0.3)
    with run_server() as server, connect(server) as stubs:
        for method in ("glowserve.v1.GlowService/Score", "grpc.health.v1.Health/Check"):
            with without_requests(stubs, 1, method) as (call,):
                assert refusal(call.result) == (INVALID, "the request did not arrive in 0.3 seconds")


@has_whole_limits
def test_unfinished_requests_are_given_up_while_memory_is_short(run_server: RunServer) -> None:
    with run_server(**SMALL) as server, connect(server) as stubs, without_requests(stubs, 4) as calls:
        wait_for(lambda: in_flight(server) == 4)
        assert not [call for call in calls if call.done()]
        memory = b"1" * (256 * 2**20)  # as if it were theirs: they are in this process
        wait_for(
            lambda: sum(call.done() for call in calls) == 3
        )  # the last one could bring as much as may be held
        for call in [call for call in calls if call.done()]:
            code, message = refusal(call.result)
            assert code is EXHAUSTED
            assert f"exceed {4 * 2**20} bytes" in message
        assert stubs.glow.Score(IMAGE).scores  # a request that arrives at once is not concerned
        del memory


# Calls


@has_whole_limits
def test_calls_over_the_limit_are_refused_on_all_connections_and_health_is_not(run_server: RunServer) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(run_server(max_concurrent_calls=3, drain_seconds=0.0))
        first, second = (stack.enter_context(connect(server)) for _ in range(2))
        calls = stack.enter_context(without_requests(first, 3))  # gRPC cancels calls that nobody refers to
        wait_for(lambda: in_flight(server) == 3)
        for call in (
            lambda: second.glow.Score(IMAGE),
            lambda: list(second.glow.Sample(pb.SampleRequest(n=1))),
            lambda: list(second.glow.ScoreStream(iter([IMAGE]))),
            lambda: second.inference.ModelInfer(oip.ModelInferRequest()),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert (caught.value.code(), reason_of(caught.value)) == (EXHAUSTED, "TOO_MANY_CALLS")
            assert "3 calls are in flight; the server takes 3" in caught.value.details()
        assert ended(server, "Score", "RESOURCE_EXHAUSTED", model="") == 1
        assert second.status() == SERVING
        assert second.inference.ServerReady(oip.ServerReadyRequest()).ready
        calls.pop().cancel()
        wait_for(lambda: in_flight(server) == 2)
        assert second.glow.Score(IMAGE).scores


@has_whole_limits
def test_watches_over_the_limit_are_refused(run_server: RunServer) -> None:
    with run_server(max_concurrent_calls=2) as server, connect(server) as stubs:
        watches = [stubs.watch() for _ in range(2)]
        assert [next(watch).status for watch in watches] == [SERVING, SERVING]
        code, message = refusal(lambda: next(stubs.watch()))
        assert (code, message) == (EXHAUSTED, "2 watches and reflections are open, as many as are accepted")
        assert stubs.status() == SERVING
        watches[0].cancel()
        wait_for(lambda: not isinstance(first_of(stubs.watch()), grpc.RpcError))


def first_of(watch: Any) -> Any:
    try:
        return next(watch)
    except grpc.RpcError as error:
        return error


# Requests that no method of health or reflection takes

OTHERS = {name: form for name, form in FORMS.items() if "/grpc." in form.path}


@pytest.mark.parametrize("form", OTHERS.values(), ids=OTHERS)
def test_long_messages_to_health_and_reflection_are_refused(channel: grpc.Channel, form: Any) -> None:
    request, method = form.request(1), form.path.rpartition("/")[2]
    call = channel.stream_stream(form.path)(iter([request]), timeout=60)
    assert refusal(lambda: list(call)) == (
        INVALID,
        f"the message has {len(request)} bytes; {method} takes at most 4096",
    )


def test_a_long_list_of_parts_is_refused_by_a_server(channel: grpc.Channel) -> None:
    for name, form in FORMS.items():
        request = form.request(2)
        code, message = refusal(lambda: list(channel.stream_stream(form.path)(iter([request]), timeout=60)))  # noqa: B023
        assert code is INVALID, name
        assert "more than" in message or "at most 4096" in message, name
    health = channel.unary_unary(
        "/grpc.health.v1.Health/Check", response_deserializer=health_pb2.HealthCheckResponse.FromString
    )
    assert health(b"", timeout=60).status == SERVING
