"""A service is stopped or killed under load: what its callers see."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

from tests.servers import free_port
from tests.soak.background_load import EndedCall, Load, closed_load
from tests.soak.callers import round_robin_options
from tests.soak.conftest import Serve
from tests.soak.known_answers import KnownAnswers
from tests.soak.report import print_table
from tests.soak.service import Service
from tests.soak.waiting import until

CALLERS = 64
CONNECTIONS = 4
ROUNDS = 5
LONGEST_SECONDS = 45.0
"""A call that takes longer hangs: calls have a deadline of 60 s, and a service stops within 30 s."""
RETURN_SECONDS = 45.0
"""Within which callers reach a service that was started again."""


def calls_before(number: int) -> int:
    """How many calls end before a signal; each round differs, so that signals arrive at different moments."""
    return 1000 + 37 * number


async def test_sigterm_under_load_loses_no_accepted_call(serve: Serve, known: KnownAnswers) -> None:
    rows, longest = list[tuple[str, object]](), 0.0
    for number in range(ROUNDS):
        with serve() as service:
            async with closed_load(
                service.target,
                {known.version: known},
                callers=CALLERS,
                connections=CONNECTIONS,
                name=f"{number}",
                errors=True,
                until_error=True,
            ) as load:
                await load.more(calls_before(number))
                service.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(service.process.wait, 60) == 0
        codes = check_stop(service, load)
        longest = max(longest, *(call.seconds for call in load.ended))
        rows.append((f"stop {number + 1}: OK, refused, lost", f"{codes['OK']}, {codes['UNAVAILABLE']}, 0"))
    print_table(f"SIGTERM, {CALLERS} callers without retries", [*rows, ("longest call, s", f"{longest:.2f}")])
    assert longest < LONGEST_SECONDS


def check_stop(service: Service, load: Load) -> Counter[str]:
    """Every caller was refused once; callers of accepted calls received the answers. Returns the codes."""
    received = {call.request_id: call.code for call in load.ended}
    logged = {line["request_id"]: line["code"] for line in service.call_log()}
    assert "Traceback" not in service.log.read_text()
    codes = Counter(received.values())
    assert set(codes) == {"OK", "UNAVAILABLE"}
    assert codes["UNAVAILABLE"] == CALLERS
    lost = {request_id for request_id, code in logged.items() if received.get(request_id) != code}
    assert not lost
    assert set(logged.values()) == {"OK", "UNAVAILABLE"}
    return codes


async def test_callers_with_retries_do_not_notice_that_one_of_two_servers_is_replaced(
    serve: Serve, known: KnownAnswers
) -> None:
    ports = [free_port(), free_port()]
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    with ExitStack() as stack:
        services = [stack.enter_context(serve("--port", f"{port}")) for port in ports]
        async with closed_load(
            target,
            {known.version: known},
            callers=CALLERS,
            connections=CONNECTIONS,
            options=round_robin_options(),
            errors=True,
        ) as load:
            for number in range(ROUNDS):
                await both_answer(services, load)
                old = services[number % 2]
                old.process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(old.process.wait, 60) == 0
                await load.more(500)  # the other server answers them
                start = serve("--port", f"{ports[number % 2]}")
                services[number % 2] = await asyncio.to_thread(stack.enter_context, start)
            await both_answer(services, load)
        by_server = [len(service.call_log()) for service in services]
    check_replacement(load, by_server)


async def both_answer(services: list[Service], load: Load) -> None:
    """Waits until all callers use both servers: as in a rolling update, the next server stops only then."""
    for service in services:
        await until(
            lambda one=service: one.total("glowserve_requests_total") > CALLERS, "both servers answer"
        )
    await load.more(1000)


def check_replacement(load: Load, by_server: list[int]) -> None:
    codes = Counter(call.code for call in load.ended)
    longest = max(call.seconds for call in load.ended)
    print_table(
        f"SIGTERM to one of two servers, {ROUNDS} times, {CALLERS} callers with retries",
        [
            ("calls", len(load.ended)),
            ("failed", len(load.ended) - codes["OK"]),
            ("longest call, s", f"{longest:.2f}"),
            ("calls of the last server on each port", ", ".join(map(str, by_server))),
        ],
    )
    assert set(codes) == {"OK"}, Counter(call.message for call in load.ended)
    assert longest < LONGEST_SECONDS
    assert min(by_server) > 0


async def test_sigkill_fails_only_calls_in_flight_and_callers_reconnect_by_themselves(
    serve: Serve, known: KnownAnswers
) -> None:
    port, rows, in_flight = free_port(), list[tuple[str, object]](), list[EndedCall]()
    with ExitStack() as stack:

        async def start() -> Service:
            return await asyncio.to_thread(stack.enter_context, serve("--port", f"{port}"))

        service = await start()
        async with closed_load(
            service.target,
            {known.version: known},
            callers=CALLERS,
            connections=CONNECTIONS,
            wait_for_ready=True,
            errors=True,
        ) as load:
            for number in range(ROUNDS):
                await load.more(calls_before(number))
                service, failed, values = await kill_and_restart(service, start, load)
                in_flight += failed
                name = f"kill {number + 1}: failed in flight, refused while it loaded, back after s"
                rows.append((name, values))
    longest = max(call.seconds for call in load.ended)
    print_table(
        f"SIGKILL and a new start, {CALLERS} callers without retries that wait for a connection",
        [("calls", len(load.ended)), *rows, ("longest call, reconnection included, s", f"{longest:.2f}")],
    )
    assert in_flight, "no call was in flight at any SIGKILL: the test shows nothing"
    assert longest < LONGEST_SECONDS


async def kill_and_restart(
    service: Service, start: Callable[[], Coroutine[Any, Any, Service]], load: Load
) -> tuple[Service, list[EndedCall], str]:
    """Returns the new service, the calls that the SIGKILL failed, and a table's cell."""
    first, killed = len(load.ended), time.monotonic()
    service.process.kill()
    await asyncio.to_thread(service.process.wait)
    await asyncio.sleep(1)  # within which the calls in flight must fail
    dead = time.monotonic()
    failed = [call for call in load.ended[first:] if call.code != "OK"]
    assert {call.code for call in failed} <= {"UNAVAILABLE"}
    assert all(call.began <= killed + 0.5 and call.ended <= killed + 1 for call in failed)
    assert len(failed) <= CALLERS
    service = await start()
    ready = time.monotonic()
    async with asyncio.timeout(RETURN_SECONDS):
        await load.more(CALLERS)
    back = time.monotonic() - ready
    refused = [call for call in load.ended[first:] if call.code != "OK" and call.ended > dead]
    # A server that loads refuses calls, with the advice to retry.
    assert {call.code for call in refused} <= {"UNAVAILABLE"}
    return service, failed, f"{len(failed)}, {len(refused)}, {back:.2f}"
