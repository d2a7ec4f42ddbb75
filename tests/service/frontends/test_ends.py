"""The ends of a service with front-ends, as a process of its own: by a signal under load, and by a kill."""

from __future__ import annotations

import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc

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


def test_front_ends_end_with_the_engine_process(start_server: StartServer) -> None:
    with start_server(*TWO) as server:
        front_ends = children(server.process.pid)
        assert len(front_ends) == 2
        kill(server.process.pid)
        server.wait()
        wait_for(lambda: not any(map(is_alive, front_ends)))
        assert not listens(server.target)
