"""What a service in this process holds: more while calls are under way, and no more when they have ended."""

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
from glowserve_service.models.models import ServedModel
from glowserve_service.scheduling.batcher import Batcher, _Part, _Submission
from glowserve_service.scheduling.cpu_pool import Preparer
from glowserve_service.server import Server

# Of objects that are made for a call, or for a server; none is left of a call or a server that has ended.
KINDS: tuple[type, ...] = (
    Call,
    _Submission,
    _Part,
    asyncio.Future,
    asyncio.Task,
    Batcher,
    Preparer,
    ServedModel,
    Server,
)
# Of memory, in bytes, for caches, and for what Python does not give back: less than 200 calls bring, each with
# 5 KiB of pixels and noise.
SLACK = 512 * 2**10
# Of objects of a kind: those of the call that ended last may stay until the next one ends.
STRAGGLERS = 2
_PATIENCE_SECONDS = 30.0


class Parts:
    """The parts of a server that keep something for a call."""

    def __init__(self, server: Server) -> None:
        self.server: Any = server
        self.models: list[Any] = list(self.server._manager._models)
        self.loop: asyncio.AbstractEventLoop = self.models[0].condition._loop
        owners = [getattr(close, "__self__", None) for close in self.server._closers]
        self.preparer: Any = next(owner for owner in owners if isinstance(owner, Preparer))

    @property
    def batchers(self) -> list[Any]:
        return [batcher for model in self.models for batcher in (model._forward, model._reverse)]

    def counts(self) -> dict[str, int]:
        """What is quickly counted, by name."""

        async def tasks() -> int:
            return len(asyncio.all_tasks()) - 1  # this one

        in_flight = self.server.metrics.registry.get_sample_value("glowserve_requests_in_flight")
        return {
            "in flight": self.server._edge._in_flight + int(in_flight),
            "holds": sum(model._holders for model in self.models),
            "queue": sum(len(batcher._short) + len(batcher._long) for batcher in self.batchers),
            "running batches": sum(len(batcher._running) for batcher in self.batchers),
            "free workers": -self.batchers[0]._workers.free._value,
            "preparing": self.preparer._images,
            "tasks": asyncio.run_coroutine_threadsafe(tasks(), self.loop).result(60),
        }


def measure(parts: Parts | None) -> dict[str, int]:
    """Everything, by name; without a server what this process has."""
    counts = parts.counts() if parts else {}
    counts |= {"threads": threading.active_count(), "open files": len(os.listdir("/proc/self/fd"))}  # noqa: PTH208
    gc.collect()
    found = Counter(type(each) for each in gc.get_objects())
    counts |= {f"objects: {kind.__name__}": found[kind] for kind in KINDS}
    if tracemalloc.is_tracing():
        counts["memory"] = tracemalloc.get_traced_memory()[0]
    return counts


def check_settled(parts: Parts | None, base: dict[str, int], patience: float = _PATIENCE_SECONDS) -> None:
    """Waits until nothing is more than at the base line; AssertionError names what is."""
    end = time.monotonic() + patience
    while more := _more(now := measure(parts), base):
        assert time.monotonic() < end, "; ".join(
            f"{name}: {now[name]}, and {base[name]} before" for name in more
        )
        time.sleep(0.1)


def _more(now: dict[str, int], base: dict[str, int]) -> list[str]:
    return [name for name in base if now[name] > base[name] + _slack(name)]


def _slack(name: str) -> int:
    if name == "memory":
        return SLACK
    return STRAGGLERS if name.startswith("objects") else 0
