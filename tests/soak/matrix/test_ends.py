"""However calls end, nothing is left of them: three kinds of calls times the ways in which they end, many at once.

The callers are processes of their own. The service is in this one, so that everything it holds can be counted: tasks,
queues, threads, files, memory, and the objects that it makes for a call. Each part of the count is shown able to fail.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from glowserve_service.front.call import Call, current
from glowserve_service.front.glow_service import GlowServicer
from glowserve_service.scheduling.batcher import _Submission
from glowserve_service.server import Server
from tests.soak.matrix_client import SCORE
from tests.soak.matrix_resources import KINDS, SLACK, Parts, check_settled, measure

from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub

# Of each case.
CALLS = int(os.environ.get("GLOWSERVE_MATRIX_CALLS", "200"))

# Images wait this long for company: time to cancel, to pass a deadline, to be killed. Then all run as one batch.
PATIENT = {"max_batch_size": 4096, "max_queue_size": 16_384, "max_queue_delay_ms": 2500.0}
# Streams come in many messages, and there is always more to do.
BUSY = {"max_batch_size": 8, "max_queue_size": 16_384}
SETTINGS = {"unary": PATIENT, "streaming": BUSY, "bidirectional": PATIENT}

# What callers may be told. Of those in a hurry, some are refused at once: they would wait too long.
STATUSES = {
    "finishes": {"OK"},
    "cancelled": {"CANCELLED"},
    "deadline": {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"},
    "error": {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"},
}


@contextmanager
def callers(
    server: Server | str, kind: str, ending: str, calls: int = CALLS
) -> Iterator[subprocess.Popen[str]]:
    """A process that makes calls; it goes on when all are under way, and is killed at the end at the latest."""
    target = server if isinstance(server, str) else f"127.0.0.1:{server.port}"
    script = Path(__file__).with_name("matrix_client.py")
    command = [sys.executable, str(script), target, kind, ending, str(calls)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


def statuses(process: subprocess.Popen[str]) -> dict[str, int]:
    """How the calls ended, when they have."""
    written, _ = process.communicate(timeout=240)
    counts: dict[str, int] = json.loads(written)
    return counts


@pytest.fixture(scope="module", autouse=True)
def nothing_else_is_kept() -> Iterator[None]:
    """pytest keeps what is logged, and with an exception all that its frames know.

    gRPC raises BlockingIOError in the loops of two servers in one process, and asyncio logs it.
    """
    loggers = [logging.getLogger(name) for name in ("service", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    tracemalloc.start(1)
    yield
    tracemalloc.stop()
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="module", params=list(SETTINGS))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def served(run_server: Any, kind: str) -> Iterator[tuple[Server, Parts, dict[str, int]]]:
    """A server for calls of one kind, its parts, and what it holds after each way to end was tried once."""
    with run_server(**SETTINGS[kind], poll_seconds=0.0, canary_seconds=0.0, drain_seconds=0.0) as server:
        for ending in (*STATUSES, "finishes"):
            with callers(server, kind, ending) as process:
                statuses(process)
        make_the_last_call(server)
        parts = Parts(server)
        settle(parts)
        yield server, parts, measure(parts)


def make_the_last_call(server: Server) -> None:
    """gRPC keeps the call that ended last, and what it knows, until the next one ends: let that be a small one."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        GlowServiceStub(channel).ListModels(pb.ListModelsRequest())


def settle(parts: Parts) -> None:
    """Until nothing is under way, and what is counted does not change any more."""
    before = None
    end = time.monotonic() + 60
    while (now := parts.counts()) != before or now["in flight"] or now["queue"] or now["preparing"]:
        assert time.monotonic() < end, now
        before = now
        time.sleep(1.0)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("ending", list(STATUSES))
def test_nothing_is_left_of_calls(
    served: tuple[Server, Parts, dict[str, int]], kind: str, ending: str
) -> None:
    server, parts, base = served
    with callers(server, kind, ending) as process:
        ended = statuses(process)
    assert sum(ended.values()) == CALLS
    assert set(ended) <= STATUSES[ending], ended
    assert ending != "deadline" or ended["DEADLINE_EXCEEDED"] >= CALLS / 4
    make_the_last_call(server)
    check_settled(parts, base)


def test_nothing_is_left_of_calls_whose_process_is_killed(
    served: tuple[Server, Parts, dict[str, int]], kind: str
) -> None:
    server, parts, base = served
    with callers(server, kind, "killed") as process:
        wait_for(lambda: parts.server._edge._in_flight == CALLS)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    make_the_last_call(server)
    check_settled(parts, base)


@pytest.mark.parametrize(
    ("drain_seconds", "ending"), [(60.0, "stopped"), (0.3, "killed")], ids=["stopped", "drain deadline"]
)
def test_nothing_is_left_of_a_server_that_stops_with_calls_under_way(
    run_server: Any, kind: str, drain_seconds: float, ending: str
) -> None:
    """Of the server itself neither, nor of its models and engines."""
    settings = SETTINGS[kind] | {"drain_seconds": drain_seconds}
    with run_server(**settings):  # what is made once in a process is made
        pass
    base = measure(None)
    ended, seconds = stop_with_calls(run_server, settings, kind, ending)
    assert sum(ended.values()) == CALLS
    if ending == "killed":  # some may be done already, of those that stop between two messages
        assert set(ended) <= {"UNAVAILABLE", "CANCELLED"}, ended
        assert seconds < 10
    elif kind == "bidirectional":  # all that they had asked was answered, but they would have asked on
        assert set(ended) == {"UNAVAILABLE"}, ended
    else:
        assert set(ended) <= {"OK", "UNAVAILABLE"}, ended
        assert ended["OK"] >= CALLS / 2
    check_settled(None, base)


def stop_with_calls(
    run_server: Any, settings: dict[str, Any], kind: str, ending: str
) -> tuple[dict[str, int], float]:
    """How the calls of a server ended that was stopped under them, and the seconds that it took."""
    with ExitStack() as clients:
        with run_server(**settings) as server:
            process = clients.enter_context(callers(server, kind, ending))
            wait_for(lambda: server._edge._in_flight >= CALLS / 2)
            began = time.monotonic()
        return statuses(process), time.monotonic() - began


@pytest.mark.parametrize("drain_seconds", [60, 0.3], ids=["stopped", "drain deadline"])
def test_a_process_that_is_told_to_stop_ends_well(start_server: Any, drain_seconds: float) -> None:
    """With calls of every kind under way."""
    flags = ("--max-queue-delay-ms", "2000", "--max-batch-size", "1024", "--max-queue-size", "131072")
    calls = CALLS // 10 + 1
    with (
        start_server(*flags, "--drain-seconds", str(drain_seconds), "--log-level", "error") as (
            process,
            target,
            url,
        ),
        ExitStack() as clients,
    ):
        processes = [
            clients.enter_context(callers(target, kind, "stopped" if drain_seconds > 1 else "killed", calls))
            for kind in SETTINGS
        ]
        wait_for(lambda: page(url)["glowserve_requests_in_flight"] > 0)
        process.send_signal(signal.SIGTERM)
        ended = [statuses(client) for client in processes]
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert not errors
    assert {status for each in ended for status in each} <= {"OK", "UNAVAILABLE", "CANCELLED"}, ended


def test_a_process_is_as_before_when_its_callers_are_killed(start_server: Any) -> None:
    """By its own metrics page."""
    flags = ("--max-queue-delay-ms", "1000", "--max-batch-size", "1024", "--max-queue-size", "131072")

    def kill(kind: str) -> None:
        with callers(target, kind, "killed", calls) as client:
            wait_for(lambda: page(url)["glowserve_requests_in_flight"] == calls)
            client.kill()
            client.wait(60)
        wait_for(lambda: page(url)["glowserve_requests_in_flight"] == 0)

    calls = CALLS // 4 + 1
    with start_server(*flags, "--log-level", "error") as (process, target, url):
        for kind in (*SETTINGS, *SETTINGS):  # so that what is made when it is needed is made
            kill(kind)
        time.sleep(2)
        base = page(url)
        for kind in (*SETTINGS, *SETTINGS):
            kill(kind)
        wait_for(lambda: page(url)["glowserve_queue_length"] == 0)
        wait_for(lambda: page(url)["process_open_fds"] <= base["process_open_fds"])
        assert page(url)["process_resident_memory_bytes"] < base["process_resident_memory_bytes"] + 32 * 2**20
        threads = len(list(Path(f"/proc/{process.pid}/task").iterdir()))
        assert threads < 60
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert not errors


def page(url: str) -> dict[str, float]:
    """A metrics page; each metric is summed over its labels."""
    with urllib.request.urlopen(url, timeout=60) as response:
        lines = response.read().decode().splitlines()
    sums: dict[str, float] = {}
    for line in lines:
        if not line.startswith("#"):
            name = line.partition("{")[0].partition(" ")[0]
            sums[name] = sums.get(name, 0.0) + float(line.rpartition(" ")[2])
    return sums


# Controls: for each thing that is counted, a service that keeps it for every call fails the check.


def _file(parts: Parts) -> Callable[[], Any]:
    file = Path(os.devnull).open("rb")  # noqa: SIM115
    return file.close


def _thread(parts: Parts) -> Callable[[], Any]:
    event = threading.Event()
    threading.Thread(target=event.wait, daemon=True).start()
    return event.set


def _task(parts: Parts) -> Callable[[], Any]:
    return asyncio.create_task(asyncio.Event().wait()).cancel


def _batch(parts: Parts) -> Callable[[], Any]:
    task = asyncio.create_task(asyncio.Event().wait())
    parts.batchers[0]._running.add(task)
    task.add_done_callback(parts.batchers[0]._running.discard)
    return task.cancel


def _rows(parts: Parts) -> Callable[[], Any]:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    parts.batchers[0]._short.append(_Submission((), 1, 0.0, math.inf, answer, Call()))
    return parts.batchers[0]._short.clear


def _number(owner: Callable[[Parts], Any], name: str, step: int) -> Callable[[Parts], Callable[[], Any]]:
    """A count that is not set back."""

    def add(parts: Parts, step: int) -> None:
        setattr(owner(parts), name, getattr(owner(parts), name) + step)

    def leak(parts: Parts) -> Callable[[], Any]:
        add(parts, step)
        return lambda: add(parts, -step)

    return leak


def _kept(make: Callable[[], Any]) -> Callable[[Parts], Callable[[], Any]]:
    """An object that somebody still knows."""

    def leak(parts: Parts) -> Callable[[], Any]:
        kept = make()
        return lambda: kept

    return leak


LEAKS: dict[str, Callable[[Parts], Callable[[], Any]]] = {
    "in flight": _number(lambda parts: parts.server._edge, "_in_flight", 1),
    "holds": lambda parts: parts.models[0].hold(),
    "queue": _rows,
    "running batches": _batch,
    "free workers": _number(lambda parts: parts.batchers[0]._workers.free, "_value", -1),
    "preparing": _number(lambda parts: parts.preparer, "_images", 1),
    "tasks": _task,
    "threads": _thread,
    "open files": _file,
    "memory": _kept(lambda: bytes(SLACK)),
    "objects: Future": _kept(lambda: asyncio.get_running_loop().create_future()),
    "objects: Task": _kept(lambda: asyncio.create_task(asyncio.sleep(0))),
} | {
    f"objects: {kind.__name__}": _kept(partial(kind.__new__, kind))
    for kind in KINDS
    if kind not in (asyncio.Future, asyncio.Task)
}


@pytest.fixture(scope="module")
def plain(run_server: Any) -> Iterator[tuple[Parts, GlowServiceStub, dict[str, int]]]:
    """A server, a connection to it, and what both hold after some calls."""
    with (
        run_server(poll_seconds=0.0, canary_seconds=0.0) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        parts, stub = Parts(server), GlowServiceStub(channel)
        for _ in range(50):
            stub.Score(SCORE)
        settle(parts)
        yield parts, stub, measure(parts)


def test_every_part_of_the_check_has_a_control(plain: tuple[Parts, GlowServiceStub, dict[str, int]]) -> None:
    assert set(LEAKS) == set(plain[2])


@pytest.mark.parametrize("what", list(LEAKS))
def test_a_service_that_keeps_something_for_each_call_fails_the_check(
    plain: tuple[Parts, GlowServiceStub, dict[str, int]], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    parts, stub, base = plain
    check_settled(parts, base, patience=5)
    undo: list[Callable[[], Any]] = []
    find = GlowServicer._find

    def leaking(servicer: GlowServicer, spec: Any) -> Any:
        if what != "free workers" or not undo:  # without any there would be no answers
            current().releases.append(lambda: undo.append(LEAKS[what](parts)))
        return find(servicer, spec)

    with monkeypatch.context() as patched:
        patched.setattr(GlowServicer, "_find", leaking)
        for _ in range(1 if what == "queue" else 5):  # the next call would have those rows run
            stub.Score(SCORE)
    with pytest.raises(AssertionError, match=re.escape(f"{what}: ")):
        check_settled(parts, base, patience=0.5)
    while undo:
        parts.loop.call_soon_threadsafe(undo.pop())
    check_settled(parts, base)
