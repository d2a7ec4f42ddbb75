"""Counts what a server in this process holds: more while calls are open, and no more once they have ended.

Of front-ends, which are processes of their own, it counts what the engine process holds for them, the calls and bytes
that they report, and their open files.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import tracemalloc
from collections import Counter
from typing import Any

from glowserve_service.front.call import Call
from glowserve_service.front.call_runner import CallRunner
from glowserve_service.models.lane import Lane
from glowserve_service.models.model import Lease
from glowserve_service.models.served_model import ServedModel
from glowserve_service.scheduling.batcher import Batcher
from glowserve_service.scheduling.cpu_pool import CpuPool
from glowserve_service.scheduling.engine_threads import Rows
from glowserve_service.scheduling.share import Worker
from glowserve_service.scheduling.submission import Part, Submission
from glowserve_service.scheduling.ticket import AdmissionGate, Ticket
from glowserve_service.server import Server

from tests.service import metrics
from tests.service.frontends.front_ends import processes

KINDS: tuple[type, ...] = (
    Call,
    CallRunner,
    Lease,
    Ticket,
    AdmissionGate,
    Submission,
    Part,
    Worker,
    asyncio.Future,
    asyncio.Task,
    Lane,
    Batcher,
    CpuPool,
    ServedModel,
    Server,
)
"""The types of objects that are made for a call, or for a server."""

SLACK_BYTES = 512 * 2**10
"""Of memory, for caches and for what Python does not return: less than 200 calls bring, each with 5 KiB of pixels and
noise."""

SLACK_OBJECTS = 2
"""Of each type: objects of the call that ended last may stay until the next call ends."""

_PATIENCE_SECONDS = 30.0

Counts = dict[str, int]
"""By name."""


class Internals:
    """The parts of a server that hold something for a call."""

    def __init__(self, server: Server) -> None:
        self.server: Any = server
        self.middleware: Any = getattr(server.front, "middleware", None)
        """None where front-ends have theirs."""
        self.models: list[Any] = list(server.manager._models)
        self.workers: Any = server.manager._workers
        self.loop: asyncio.AbstractEventLoop = self.models[0].health._loop
        owners = [getattr(close, "__self__", None) for close in server._closers._functions]
        self.cpu_pool: Any = next((owner for owner in owners if isinstance(owner, CpuPool)), None)
        lanes = [lane for model in self.models for lane in (model.forward, model.reverse)]
        self.batchers: list[Any] = [lane._batcher for lane in lanes]

    def start_all_threads(self) -> None:
        """Starts every thread of the pools: else a pool starts one when it first needs one more."""
        asyncio.run_coroutine_threadsafe(asyncio.to_thread(bool), self.loop).result(
            60
        )  # makes the loop's own pool
        loop: Any = self.loop
        for pool in filter(None, (self.cpu_pool and self.cpu_pool._pool, loop._default_executor)):
            everyone = threading.Barrier(pool._max_workers)
            for future in [pool.submit(everyone.wait, 60) for _ in range(pool._max_workers)]:
                future.result()
        asyncio.run_coroutine_threadsafe(self._start_engine_threads(), self.loop).result(60)

    async def _start_engine_threads(self) -> None:
        everyone = threading.Barrier(self.workers.instances)

        def wait() -> Rows:
            everyone.wait(60)
            return ()

        await asyncio.gather(*(self.workers.run(wait, ()) for _ in range(self.workers.instances)))

    def count(self) -> Counts:
        """What can be counted quickly."""

        async def tasks() -> int:
            return len(asyncio.all_tasks()) - 1  # without this one

        queues = [batcher._queue for batcher in self.batchers]
        return self._count_front() | {
            "open calls": self.open_calls(),
            "calls in flight": int(metrics.in_flight(self.server)),
            "leases": sum(model._leases for model in self.models),
            "submissions": sum(len(queue._short) + len(queue._long) for queue in queues),
            "running batches": sum(len(batcher._running) for batcher in self.batchers),
            "busy workers": self.workers.instances - self.workers.idle,
            "tasks": asyncio.run_coroutine_threadsafe(tasks(), self.loop).result(60),
        }

    def open_calls(self) -> int:
        """How many calls are open."""
        return int(self.middleware._open_calls if self.middleware else metrics.in_flight(self.server))

    def _count_front(self) -> Counts:
        if self.middleware:
            return {"images in the CPU pool": self.cpu_pool._images}
        links = list(self.server.front._links.values())
        files = (len(os.listdir(f"/proc/{each}/fd")) for each in processes(self.server))  # noqa: PTH208
        return {
            "requests of front-ends": sum(len(link._requests) for link in links),
            "received bytes": int(metrics.value(self.server, "received_bytes")),
            "open files of front-ends": sum(files),
        }


def count_all(internals: Internals | None) -> Counts:
    """Everything; without a server only what this process holds."""
    counts = internals.count() if internals else {}
    counts |= {"threads": threading.active_count(), "open files": len(os.listdir("/proc/self/fd"))}  # noqa: PTH208
    gc.collect()
    objects = Counter(type(each) for each in gc.get_objects())
    counts |= {f"objects: {kind.__name__}": objects[kind] for kind in KINDS}
    if tracemalloc.is_tracing():
        counts["memory"] = tracemalloc.get_traced_memory()[0]
    return counts


def settle(internals: Internals) -> None:
    """Waits until no call is open and the quick counts stay the same for a second.

    Raises:
        AssertionError: that took a minute.
    """
    before, deadline = None, time.monotonic() + 60
    while (now := internals.count()) != before or now["open calls"] or now["submissions"]:
        assert time.monotonic() < deadline, now
        before = now
        time.sleep(1.0)


def check_counts(internals: Internals | None, baseline: Counts, patience: float = _PATIENCE_SECONDS) -> None:
    """Waits until no count is higher than in the baseline.

    Raises:
        AssertionError: some are, after `patience` seconds; the message names them.
    """
    deadline = time.monotonic() + patience
    while higher := _higher(now := count_all(internals), baseline):
        assert time.monotonic() < deadline, "; ".join(
            f"{name}: {now[name]}, and {baseline[name]} before" for name in higher
        )
        time.sleep(0.1)


def _higher(now: Counts, baseline: Counts) -> list[str]:
    return [name for name in baseline if now[name] > baseline[name] + _slack(name)]


def _slack(name: str) -> int:
    if name == "memory":
        return SLACK_BYTES
    return SLACK_OBJECTS if name.startswith("objects") else 0
