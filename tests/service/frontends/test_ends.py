"""The ends of a service with front-ends, as a process of its own: by a signal under load, and by a kill."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from glowserve.images import UInt8Array
from glowserve.v1 import glow_service_pb2 as pb
from tests.servers import StartServer, listens
from tests.service.frontends.front_ends import CONNECTIONS, children, connections, is_alive, kill
from tests.service.stubs import Stubs
from tests.service.wire import raw, wait_for

TWO = ("--frontends", "2")
ENOUGH = 20 * CONNECTIONS


def test_a_stop_under_load_cuts_no_call_and_logs_every_call_once(
    start_server: StartServer, digits: UInt8Array
) -> None:
    request = pb.ScoreRequest(images=raw(digits[:1]))
    outcomes: Counter[grpc.StatusCode] = Counter()
    answered, lock = threading.Event(), threading.Lock()

    def call_until_refused(stubs: Stubs) -> None:
        code = grpc.StatusCode.OK
        while code is grpc.StatusCode.OK:
            try:
                stubs.glow.Score(request)
            except grpc.RpcError as error:
                code = error.code()
            with lock:
                outcomes[code] += 1
                if outcomes[grpc.StatusCode.OK] >= ENOUGH:
                    answered.set()

    with (
        start_server(*TWO) as server,
        connections(server.target) as many,
        ThreadPoolExecutor(CONNECTIONS) as pool,
    ):
        callers = [pool.submit(call_until_refused, stubs) for stubs in many]
        assert answered.wait(60)
        log = server.stop()
        for caller in callers:
            caller.result()
    assert set(outcomes) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert outcomes[grpc.StatusCode.UNAVAILABLE] == CONNECTIONS
    lines = re.findall(r" INFO \S+: \[(\w+)\] Score of digits: OK, 1 image ", log)
    assert len(lines) == len(set(lines)) == outcomes[grpc.StatusCode.OK]
    assert all(re.match(r"\d{4}-\d\d-\d\d ", line) for line in log.splitlines())
    assert log.splitlines()[-1].endswith("stopped")


def test_a_front_end_refuses_calls_until_all_others_do(start_server: StartServer) -> None:
    """A client whose connection was closed makes another one, which must not meet a front-end that closes its own."""
    with start_server(*TWO) as server, connections(server.target) as many:
        late, _ = children(server.process.pid)
        os.kill(late, signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1.0)  # within which it would have stopped
        calls = [stubs.glow.ListModels.future(pb.ListModelsRequest()) for stubs in many]
        wait_for(lambda: any(call.done() for call in calls))
        os.kill(late, signal.SIGCONT)
        assert {(call.code(), call.details()) for call in calls} == {
            (grpc.StatusCode.UNAVAILABLE, "the server is stopping; try another")
        }
        assert server.wait()[0] == 0


def test_a_killed_engine_process_takes_calls_and_readiness_with_it_at_once(
    start_server: StartServer, digits: UInt8Array
) -> None:
    request = pb.ScoreRequest(images=raw(digits[:1]))
    with (
        start_server(*TWO, "--max-queue-delay-ms", "60000") as server,
        connections(server.target) as many,
    ):
        front_ends = children(server.process.pid)
        assert len(front_ends) == 2
        calls = [stubs.glow.Score.future(request) for stubs in many]
        wait_for(lambda: server.metric("glowserve_requests_in_flight") == CONNECTIONS)
        kill(server.process.pid)
        killed = time.monotonic()
        assert {call.code() for call in calls} == {grpc.StatusCode.UNAVAILABLE}
        for stubs in many:
            with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
                stubs.status()
        assert not listens(server.target)
        assert time.monotonic() - killed < 2
        server.wait()
        wait_for(lambda: not any(map(is_alive, front_ends)))
