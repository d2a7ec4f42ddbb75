"""A service process with open calls is stopped, or loses its callers."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import pytest

from tests.servers import FRONTENDS
from tests.soak.conftest import Serve
from tests.soak.matrix.calls import CALLS, SETTINGS, caller_process, count_statuses
from tests.soak.service import Service
from tests.soak.waiting import wait_until

FLAGS = ("--max-batch-size", "1024", "--max-queue-size", "131072", "--log-level", "error")


@pytest.mark.parametrize("drain_seconds", [60, 0.3], ids=["calls finish", "the drain deadline passes"])
def test_a_process_with_open_calls_of_every_kind_ends_without_an_error(
    serve: Serve, drain_seconds: float
) -> None:
    flags = (*FLAGS, "--max-queue-delay-ms", "2000", "--drain-seconds", str(drain_seconds))
    calls, ending = CALLS // 10 + 1, "stopped" if drain_seconds > 1 else "killed"
    with serve(*flags) as service, ExitStack() as clients:
        processes = [
            clients.enter_context(caller_process(service.target, kind, ending, calls)) for kind in SETTINGS
        ]
        wait_until(lambda: service.total("glowserve_requests_in_flight") > 0, "calls are in flight")
        service.process.send_signal(signal.SIGTERM)
        statuses = [count_statuses(process) for process in processes]
        assert service.process.wait(60) == 0
        log = service.log.read_text()
    assert not log
    assert {status for each in statuses for status in each} <= {"OK", "UNAVAILABLE", "CANCELLED"}, statuses


def test_a_process_holds_nothing_for_callers_that_were_killed(serve: Serve) -> None:
    calls = CALLS // 4 + 1
    # No call is answered before all are in flight and the callers are killed, however busy the machine is.
    with serve(*FLAGS, "--max-queue-delay-ms", "30000") as service:
        for kind in 2 * FRONTENDS * list(SETTINGS):  # makes what is made when it is first needed
            kill_callers(service, kind, calls)
        wait_until(lambda: service.total("glowserve_queue_length") == 0, "no image waits")
        before = service.snapshot()
        for kind in (*SETTINGS, *SETTINGS):
            kill_callers(service, kind, calls)
        wait_until(lambda: service.total("glowserve_queue_length") == 0, "no image waits")
        wait_until(lambda: service.snapshot().files <= before.files, "no more files are open than before")
        after = service.snapshot()
        assert after.rss < before.rss + 32 * 2**20
        assert after.threads < 60
        service.process.terminate()
        assert service.process.wait(60) == 0
        log = service.log.read_text()
    assert not log


def kill_callers(service: Service, kind: str, calls: int) -> None:
    with caller_process(service.target, kind, "killed", calls) as client:
        wait_until(lambda: service.total("glowserve_requests_in_flight") == calls, "all calls are in flight")
        client.kill()
        client.wait(60)
    wait_until(lambda: service.total("glowserve_requests_in_flight") == 0, "no call is in flight")
