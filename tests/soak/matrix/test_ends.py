"""However calls end, the server holds nothing for them afterwards: three kinds of calls, each ending in every way.

The callers are other processes. The server is in this one, so that all it holds can be counted.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from glowserve_service.server import Server

from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.servers import RunServer
from tests.service.stubs import address
from tests.soak.matrix.calls import CALLS, SETTINGS, STATUSES, caller_process, count_statuses
from tests.soak.matrix.resources import Counts, Internals, check_counts, count_all, settle
from tests.soak.waiting import wait_until

pytestmark = pytest.mark.usefixtures("only_the_server_holds_memory")

Served = tuple[Server, Internals, Counts]


@pytest.fixture(scope="module", params=list(SETTINGS))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def served(run_server: RunServer, only_the_server_holds_memory: None, kind: str) -> Iterator[Served]:
    """A server for calls of one kind, and the baseline of its counts, after calls have ended in each way once."""
    with run_server(**SETTINGS[kind], poll_seconds=0.0, canary_seconds=0.0, drain_seconds=0.0) as server:
        for ending in (*STATUSES, "finishes"):
            with caller_process(address(server), kind, ending) as process:
                count_statuses(process)
        make_a_last_call(server)
        internals = Internals(server)
        internals.start_all_threads()
        settle(internals)
        yield server, internals, count_all(internals)


def make_a_last_call(server: Server) -> None:
    """Makes a small call: gRPC keeps the objects of the call that ended last until another one ends."""
    with grpc.insecure_channel(address(server)) as channel:
        GlowServiceStub(channel).ListModels(pb.ListModelsRequest())


@pytest.mark.parametrize("ending", list(STATUSES))
def test_nothing_is_held_for_calls_that_have_ended(served: Served, kind: str, ending: str) -> None:
    server, internals, baseline = served
    with caller_process(address(server), kind, ending) as process:
        statuses = count_statuses(process)
    assert sum(statuses.values()) == CALLS
    assert set(statuses) <= STATUSES[ending], statuses
    # Each part of a stream is refused if it would be late: only those that are late all the same miss the deadline.
    least = CALLS / 20 if kind == "streaming" else CALLS / 4
    assert ending != "deadline" or statuses["DEADLINE_EXCEEDED"] >= least, statuses
    make_a_last_call(server)
    check_counts(internals, baseline)


def test_nothing_is_held_for_calls_whose_process_is_killed(served: Served, kind: str) -> None:
    server, internals, baseline = served
    with caller_process(address(server), kind, "killed") as process:
        wait_until(lambda: internals.open_calls() == CALLS, "all calls are open")
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    make_a_last_call(server)
    check_counts(internals, baseline)


@pytest.mark.parametrize(
    ("drain_seconds", "ending"),
    [(60.0, "stopped"), (0.3, "killed")],
    ids=["calls finish", "the drain deadline passes"],
)
def test_nothing_is_held_after_a_server_that_stops_with_open_calls(
    run_server: RunServer, kind: str, drain_seconds: float, ending: str
) -> None:
    """Neither for the calls, nor the server itself, its models and its engines."""
    settings = SETTINGS[kind] | {"drain_seconds": drain_seconds}
    with run_server(**settings):  # makes what is made once in a process
        pass
    baseline = count_all(None)
    statuses, seconds = stop_with_open_calls(run_server, settings, kind, ending)
    assert sum(statuses.values()) == CALLS
    if ending == "killed":  # UNAVAILABLE if the server ended a stream between two of its responses
        assert set(statuses) <= {"UNAVAILABLE", "CANCELLED"}, statuses
        assert seconds < 10
    elif kind == "bidirectional":  # all requests were answered, but the client had not ended the streams
        assert set(statuses) == {"UNAVAILABLE"}, statuses
    else:
        assert set(statuses) <= {"OK", "UNAVAILABLE"}, statuses
        assert statuses["OK"] >= CALLS / 2
    check_counts(None, baseline)


def stop_with_open_calls(
    run_server: RunServer, settings: dict[str, Any], kind: str, ending: str
) -> tuple[dict[str, int], float]:
    """Stops a server under open calls; returns the number of calls by status, and the seconds that the stop took."""
    with ExitStack() as clients:
        with run_server(**settings) as server:
            process = clients.enter_context(caller_process(address(server), kind, ending))
            wait_until_half_are_open(Internals(server))
            began = time.monotonic()
        return count_statuses(process), time.monotonic() - began


def wait_until_half_are_open(internals: Internals) -> None:
    wait_until(lambda: internals.open_calls() >= CALLS / 2, "half of the calls are open")
