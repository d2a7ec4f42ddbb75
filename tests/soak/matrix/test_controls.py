"""Controls of the matrix: for each count, the check fails if a server leaks what is counted with every call."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from glowserve_service.front.call_runner import CallRunner

from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.servers import RunServer
from tests.service.marks import patches_the_front
from tests.service.stubs import address
from tests.soak.matrix.client import SCORE
from tests.soak.matrix.leaks import LEAKS
from tests.soak.matrix.resources import Counts, Internals, check_counts, count_all, settle

pytestmark = [pytest.mark.usefixtures("only_the_server_holds_memory"), patches_the_front]

Served = tuple[Internals, GlowServiceStub, Counts]


@pytest.fixture(scope="module")
def served(run_server: RunServer, only_the_server_holds_memory: None) -> Iterator[Served]:
    """A server, a connection to it, and the baseline of the counts, after some calls."""
    with (
        run_server(poll_seconds=0.0, canary_seconds=0.0) as server,
        grpc.insecure_channel(address(server)) as channel,
    ):
        internals, stub = Internals(server), GlowServiceStub(channel)
        for _ in range(50):
            stub.Score(SCORE)
        internals.start_all_threads()
        settle(internals)
        yield internals, stub, count_all(internals)


def test_every_count_has_a_control(served: Served) -> None:
    _, _, baseline = served
    assert set(LEAKS) == set(baseline)


@pytest.mark.parametrize("count", list(LEAKS))
def test_a_server_that_leaks_with_every_call_fails_the_check(
    served: Served, monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    internals, stub, baseline = served
    check_counts(internals, baseline, patience=5)
    undo: list[Callable[[], Any]] = []
    leave = CallRunner.__aexit__

    async def leaking(runner: CallRunner, *error: Any) -> None:
        await leave(runner, *error)
        if count != "busy workers" or not undo:  # a server without a free worker would answer no call
            undo.append(LEAKS[count](internals))

    with monkeypatch.context() as patched:
        patched.setattr(CallRunner, "__aexit__", leaking)
        for _ in range(1 if count == "submissions" else 5):  # the next call would run the leaked submission
            stub.Score(SCORE)
    with pytest.raises(AssertionError, match=re.escape(f"{count}: ")):
        check_counts(internals, baseline, patience=0.5)
    while undo:
        internals.loop.call_soon_threadsafe(undo.pop())
    check_counts(internals, baseline)
