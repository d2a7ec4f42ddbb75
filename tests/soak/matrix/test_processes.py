"""A service process with open calls is stopped, or loses its callers."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import pytest

from tests.soak.conftest import Serve
from tests.soak.matrix.calls import CALLS, SETTINGS, caller_process, count_statuses
from tests.soak.service import Service, Snapshot
from tests.soak.waiting import wait_until

MAX_GROWTH = 8 * 2**20
"""Of resident memory, in bytes, in the last round. What is made when it is first needed is made by then."""
MOST_ROUNDS = 8
"""ONNX Runtime keeps the most memory that each of its sessions ever used: 100 MiB more after the first round, in three
rounds, and then less than 2 MiB a round in nine more."""

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
    # No call is answered before all are in flight and the callers are killed, however busy the machine is.
    with serve(*FLAGS, "--max-queue-delay-ms", "30000") as service:
        rounds = [kill_callers_of_every_kind(service)]
        while len(rounds) < MOST_ROUNDS and (len(rounds) < 2 or growth(rounds) >= MAX_GROWTH):
            rounds.append(kill_callers_of_every_kind(service))
        assert growth(rounds) < MAX_GROWTH, [each.rss for each in rounds]
        wait_until(lambda: service.snapshot().files <= rounds[0].files, "no more files are open than before")
        assert rounds[-1].threads < 60
        service.process.terminate()
        assert service.process.wait(60) == 0
        log = service.log.read_text()
    assert not log


def growth(rounds: list[Snapshot]) -> int:
    """By how many bytes the resident memory grew in the last round."""
    return rounds[-1].rss - rounds[-2].rss


def kill_callers_of_every_kind(service: Service) -> Snapshot:
    """Kills callers of each kind twice; returns the resources of the service afterwards."""
    for kind in (*SETTINGS, *SETTINGS):
        kill_callers(service, kind, CALLS // 4 + 1)
    wait_until(lambda: service.total("glowserve_queue_length") == 0, "no image waits")
    return service.snapshot()


def kill_callers(service: Service, kind: str, calls: int) -> None:
    with caller_process(service.target, kind, "killed", calls) as client:
        wait_until(lambda: service.total("glowserve_requests_in_flight") == calls, "all calls are in flight")
        client.kill()
        client.wait(60)
    wait_until(lambda: service.total("glowserve_requests_in_flight") == 0, "no call is in flight")
