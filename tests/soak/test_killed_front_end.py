"""A front-end is killed under load, again and again: its own calls fail, no other, and another one takes its place."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.servers import FRONTENDS
from tests.service.frontends.front_ends import connections, kill
from tests.service.stubs import SERVING
from tests.soak.background_load import EndedCall, closed_load
from tests.soak.conftest import Serve
from tests.soak.known_answers import KnownAnswers
from tests.soak.report import print_table
from tests.soak.service import Service
from tests.soak.waiting import until, wait_until

CALLERS = 64
CONNECTIONS = 16
"""So many that each front-end has some."""
ROUNDS = 5

pytestmark = pytest.mark.skipif(FRONTENDS == 1, reason="needs TEST_FRONTENDS=2")


async def test_a_front_end_that_is_killed_fails_only_its_own_calls_and_is_replaced(
    serve: Serve, known: KnownAnswers
) -> None:
    rows = list[tuple[str, object]]()
    with serve() as service:
        for number in range(ROUNDS):
            await asyncio.to_thread(wait_until_all_answer, service)
            failed, seconds, calls = await kill_one(service, known, number)
            cut = {int(call.request_id.split("-")[1]) % CONNECTIONS for call in failed}
            assert {call.code for call in failed} == {"UNAVAILABLE"}
            assert 0 < len(cut) < CONNECTIONS
            assert len(failed) <= len(cut) * CALLERS / CONNECTIONS
            values = f"{calls}, {len(failed)}, {len(cut)}, {seconds:.2f}"
            rows.append((f"kill {number + 1}: calls, failed, connections, replaced after s", values))
        assert service.total("glowserve_requests_in_flight") == service.total("glowserve_queue_length") == 0
        assert service.total("glowserve_received_bytes") == 0
        service.process.terminate()
        assert await asyncio.to_thread(service.process.wait, 60) == 0
        log = service.log.read_text()
    print_table(f"SIGKILL of one of {FRONTENDS} front-ends, {CALLERS} callers without retries", rows)
    assert "Traceback" not in log
    assert log.count("another one starts in") == ROUNDS


def wait_until_all_answer(service: Service) -> None:
    with connections(service.target) as many:
        wait_until(lambda: len(service.frontends()) == FRONTENDS, "no front-end is missing")
        wait_until(lambda: all(each.status() == SERVING for each in many), "all connections are served")


async def kill_one(service: Service, known: KnownAnswers, number: int) -> tuple[list[EndedCall], float, int]:
    """Kills a front-end under load; returns the calls that failed, after how long it was replaced, and all calls."""
    async with closed_load(
        service.target,
        {known.version: known},
        callers=CALLERS,
        connections=CONNECTIONS,
        name=f"{number}",
        wait_for_ready=True,
        errors=True,
    ) as load:
        await load.more(500 + 37 * number)
        victim, killed = service.frontends()[number % FRONTENDS], time.monotonic()
        kill(victim)
        await until(lambda: len({*service.frontends()} - {victim}) == FRONTENDS, "the front-end is replaced")
        seconds = time.monotonic() - killed
        await load.more(10 * CALLERS)
    return [call for call in load.ended if call.code != "OK"], seconds, len(load.ended)
