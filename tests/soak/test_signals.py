"""A service is stopped, or killed, under load: what callers see of it."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from tests.soak.callers import NO_RETRIES, WELL_BEHAVED, Caller, Known, spread_options
from tests.soak.conftest import Serve, Service, table, wait_for

CALLERS = 64
CONNECTIONS = 4
ROUNDS = 5
# A call that takes longer hangs: its deadline is in 60 s, and the longest drain is 30 s.
LONGEST = 45.0


@dataclass(frozen=True)
class Ended:
    """A call that has ended."""

    request_id: str
    code: str
    reason: str
    began: float
    ended: float


@asynccontextmanager
async def callers(
    target: str,
    known: Known,
    *,
    options: list[tuple[str, Any]],
    name: str,
    wait: bool = False,
    once: bool = False,
) -> AsyncIterator[list[Ended]]:
    """Calls of all well-behaved kinds, `CALLERS` at a time, while the block runs; those that have ended.

    Args:
        target: of the servers.
        known: of their model.
        options: of the connections.
        name: the request ids begin with it.
        wait: whether calls wait for a connection.
        once: whether a caller stops after its first call that is not OK; the block's end then waits for them all.
    """
    ends, stopping = list[Ended](), asyncio.Event()

    async def work(number: int, caller: Caller) -> None:
        luck, count = random.Random(f"{name}-{number}"), 0
        while not stopping.is_set():
            request_id = f"{name}-{number}-{count}"
            began = time.monotonic()
            code = await caller.call(luck.choice(WELL_BEHAVED), luck, request_id)
            reason = "" if code == "OK" else caller.reasons.pop()
            ends.append(Ended(request_id, code, reason, began, time.monotonic()))
            if once and code != "OK":
                return
            count += 1

    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(target, options))
            for _ in range(CONNECTIONS)
        ]
        group = await stack.enter_async_context(asyncio.TaskGroup())
        for number in range(CALLERS):
            channel = channels[number % CONNECTIONS]
            group.create_task(work(number, Caller(channel, {known.version: known}, wait=wait)))
        yield ends
        if not once:
            stopping.set()


def test_sigterm_under_load_loses_no_call_that_was_accepted(serve: Serve, known: Known) -> None:
    rows, longest = list[tuple[str, object]](), 0.0

    async def stop_one(service: Service, name: str, delay: float) -> list[Ended]:
        async with callers(service.target, known, options=NO_RETRIES, name=name, once=True) as ends:
            await asyncio.sleep(delay)
            service.process.send_signal(signal.SIGTERM)
        return ends

    for number in range(ROUNDS):
        with serve() as service:
            ends = asyncio.run(stop_one(service, f"{number}", 2 + 0.037 * number))
            assert service.process.wait(60) == 0
        logged = {line["request_id"]: line["code"] for line in service.calls_in_log()}
        told = {end.request_id: end.code for end in ends}
        assert "Traceback" not in service.log.read_text()
        assert set(told.values()) == {"OK", "UNAVAILABLE"}
        assert list(told.values()).count("UNAVAILABLE") == CALLERS  # each was refused once, and went home
        # Whoever was let in was answered, and heard the answer.
        lost = {request_id for request_id, code in logged.items() if told.get(request_id) != code}
        assert not lost
        assert set(logged.values()) == {"OK", "UNAVAILABLE"}
        codes, longest = Counter(told.values()), max(longest, *(end.ended - end.began for end in ends))
        rows.append((f"stop {number + 1}: OK, refused, lost", f"{codes['OK']}, {codes['UNAVAILABLE']}, 0"))
    table(f"SIGTERM, {CALLERS} callers without retries", [*rows, ("longest call, s", f"{longest:.2f}")])
    assert longest < LONGEST


def test_no_caller_that_retries_sees_one_of_two_servers_being_replaced(serve: Serve, known: Known) -> None:
    ports = [free_port(), free_port()]
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)

    async def replace_each(stack: ExitStack, services: list[Service]) -> list[Ended]:
        async with callers(target, known, options=spread_options(), name="spread") as ends:
            for number in range(ROUNDS):
                # As when servers are replaced one by one: the next goes once all callers have found the one before.
                for service in services:
                    await asyncio.to_thread(
                        wait_for, lambda one=service: one.total("glowserve_requests_total") > CALLERS
                    )
                await asyncio.sleep(2)
                old, port = services[number % 2], ports[number % 2]
                old.process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(old.process.wait, 60) == 0
                await asyncio.sleep(1)
                services[number % 2] = await asyncio.to_thread(
                    lambda port=port: stack.enter_context(serve("--port", f"{port}"))
                )
            await asyncio.sleep(5)
        return ends

    with ExitStack() as stack:
        services = [stack.enter_context(serve("--port", f"{port}")) for port in ports]
        ends = asyncio.run(replace_each(stack, services))
        by_server = [len(service.calls_in_log()) for service in services]
    codes = Counter(end.code for end in ends)
    longest = max(end.ended - end.began for end in ends)
    table(
        f"SIGTERM to one of two servers, {ROUNDS} times, {CALLERS} callers with retries",
        [
            ("calls", len(ends)),
            ("failed", len(ends) - codes["OK"]),
            ("longest call, s", f"{longest:.2f}"),
            ("answered by the last server on each port", ", ".join(map(str, by_server))),
        ],
    )
    assert set(codes) == {"OK"}, Counter(end.reason for end in ends)
    assert longest < LONGEST
    assert min(by_server) > 0


def test_sigkill_fails_calls_in_flight_alone_and_callers_come_back_by_themselves(
    serve: Serve, known: Known
) -> None:
    port = free_port()
    rows, failed = list[tuple[str, object]](), list[Ended]()

    async def kill_often(start: Callable[[], Coroutine[Any, Any, Service]]) -> list[Ended]:
        service = await start()
        async with callers(service.target, known, options=NO_RETRIES, name="kill", wait=True) as ends:
            for number in range(ROUNDS):
                await asyncio.sleep(2 + 0.037 * number)
                before = len(ends)
                killed = time.monotonic()
                service.process.kill()
                await asyncio.to_thread(service.process.wait)
                await asyncio.sleep(1)
                dead = time.monotonic()
                new = [end for end in ends[before:] if end.code != "OK"]
                # They were under way, and heard of it at once.
                assert {end.code for end in new} <= {"UNAVAILABLE"}
                assert all(end.began <= killed + 0.5 and end.ended <= killed + 1 for end in new)
                assert len(new) <= CALLERS
                service = await start()
                ready, count = time.monotonic(), len(ends)
                while len(ends) < count + CALLERS:
                    await asyncio.sleep(0.01)
                    assert time.monotonic() < ready + LONGEST, "callers did not come back"
                back = time.monotonic() - ready
                failed.extend(new)
                starting = [end for end in ends[before:] if end.code != "OK" and end.ended > dead]
                # Those that came while it loaded were refused; that they may try again at once is part of the answer.
                assert {end.code for end in starting} <= {"UNAVAILABLE"}
                rows.append(
                    (
                        f"kill {number + 1}: failed in flight, refused while it loaded, back after s",
                        f"{len(new)}, {len(starting)}, {back:.2f}",
                    )
                )
        return ends

    with ExitStack() as stack:

        async def start() -> Service:
            return await asyncio.to_thread(lambda: stack.enter_context(serve("--port", f"{port}")))

        ends = asyncio.run(kill_often(start))
    longest = max(end.ended - end.began for end in ends)
    table(
        f"SIGKILL and a new start, {CALLERS} callers without retries that wait for a connection",
        [("calls", len(ends)), *rows, ("longest call, the way back included, s", f"{longest:.2f}")],
    )
    assert failed  # or nothing was under way, and nothing was tested
    assert longest < LONGEST


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
