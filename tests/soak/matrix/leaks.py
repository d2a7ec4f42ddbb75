"""Leaks for the controls: each makes a server hold more of one thing that the check counts."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from glowserve_service.scheduling.submission import Submission
from glowserve_service.scheduling.ticket import Ticket

from tests.soak.matrix.resources import KINDS, SLACK_BYTES, Internals

Leak = Callable[[Internals], Callable[[], Any]]
"""Leaks once, in the server's event loop, and returns what undoes that."""


def _file(internals: Internals) -> Callable[[], Any]:
    file = Path(os.devnull).open("rb")  # noqa: SIM115
    return file.close


def _thread(internals: Internals) -> Callable[[], Any]:
    event = threading.Event()
    threading.Thread(target=event.wait, daemon=True).start()
    return event.set


def _task(internals: Internals) -> Callable[[], Any]:
    return asyncio.create_task(asyncio.Event().wait()).cancel


def _running_batch(internals: Internals) -> Callable[[], Any]:
    running, task = internals.batchers[0]._running, asyncio.create_task(asyncio.Event().wait())
    running.add(task)
    task.add_done_callback(running.discard)
    return task.cancel


def _submission(internals: Internals) -> Callable[[], Any]:
    queue = internals.batchers[1]._queue  # of another direction than Score's, whose dispatcher would run it
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    queue._short.append(Submission((), 1, 0.0, Ticket(), answer))
    return queue._short.clear


def _number(owner: Callable[[Internals], Any], name: str, step: int) -> Leak:
    """A count that is not set back."""

    def add(internals: Internals, step: int) -> None:
        setattr(owner(internals), name, getattr(owner(internals), name) + step)

    def leak(internals: Internals) -> Callable[[], Any]:
        add(internals, step)
        return lambda: add(internals, -step)

    return leak


def _object(make: Callable[[], Any]) -> Leak:
    """An object to which a reference remains."""

    def leak(internals: Internals) -> Callable[[], Any]:
        kept = make()
        return lambda: kept

    return leak


LEAKS: dict[str, Leak] = {
    "open calls": _number(lambda internals: internals.middleware, "_open_calls", 1),
    "calls in flight": _number(lambda internals: internals.middleware, "_in_flight", 1),
    "leases": _number(lambda internals: internals.models[0], "_leases", 1),
    "submissions": _submission,
    "running batches": _running_batch,
    "busy workers": _number(lambda internals: internals.workers, "idle", -1),
    "images in the CPU pool": _number(lambda internals: internals.cpu_pool, "_images", 1),
    "tasks": _task,
    "threads": _thread,
    "open files": _file,
    "memory": _object(lambda: bytes(SLACK_BYTES)),
    "objects: Future": _object(lambda: asyncio.get_running_loop().create_future()),
    "objects: Task": _object(lambda: asyncio.create_task(asyncio.sleep(0))),
} | {
    f"objects: {kind.__name__}": _object(partial(kind.__new__, kind))
    for kind in KINDS
    if kind not in (asyncio.Future, asyncio.Task)
}
"""By the name of the count."""
