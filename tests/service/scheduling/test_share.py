"""How models share the workers: by time, without credit for a pause, and with a worker kept for short batches.

The clock is the test's. A model of short batches takes 10 ms a batch, one of long batches 0.3 s.
"""

from __future__ import annotations

import asyncio
import heapq
from statistics import median
from types import SimpleNamespace

import pytest
from glowserve_service.scheduling import share as share_module
from glowserve_service.scheduling import workers as workers_module
from glowserve_service.scheduling.share import Share, Worker
from glowserve_service.scheduling.workers import Workers

SHORT, LONG = 0.01, 0.3
_TICK = 0.001


class Machine:
    """Workers whose batches last as long as a test says, and callers that each send a call after the other."""

    def __init__(self, instances: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for module in (share_module, workers_module):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.workers = Workers(instances)
        self._events: list[tuple[float, int, asyncio.Future[None]]] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def sleep(self, seconds: float) -> None:
        """Returns after so much time of the test's clock."""
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._events, (self.now + seconds, id(future), future))
        await future

    def call(self, share: Share, seconds: float, *, callers: int = 1, pause: float = _TICK) -> list[float]:
        """Lets callers call from now on, with batches of so many seconds; returns the list of the waits to come."""
        waits: list[float] = []

        async def caller() -> None:
            while True:
                began = self.now
                worker = await share.acquire()
                waits.append(self.now - began)
                worker.expected_seconds = seconds
                await self.sleep(seconds)
                share.release(worker)
                await self.sleep(pause)

        self._tasks += [asyncio.create_task(caller()) for _ in range(callers)]
        return waits

    async def run(self, seconds: float) -> None:
        """Lets time pass."""
        end = self.now + seconds
        while self.now < end:
            for _ in range(3):
                await asyncio.sleep(0)
            self.now += _TICK
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2].set_result(None)
            self.workers.grant()  # as its timer would

    async def stop(self) -> None:
        """Ends all callers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self.workers.close()


async def test_models_share_the_workers_by_time_and_not_by_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(2, monkeypatch)
    short, long = machine.workers.share(), machine.workers.share()
    machine.call(short, SHORT, callers=8)
    machine.call(long, LONG, callers=8)
    await machine.run(6)
    assert 0.45 < short.used / (short.used + long.used) < 0.55
    await machine.stop()


async def test_a_model_saves_no_time_up_while_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(1, monkeypatch)
    one, other = machine.workers.share(), machine.workers.share()
    machine.call(one, 0.1, callers=4)
    await machine.run(3)
    before = one.used
    machine.call(other, 0.1, callers=4)
    await machine.run(4)
    assert one.used - before == pytest.approx(2, abs=0.2)
    await machine.stop()


@pytest.mark.parametrize("instances", [1, 2, 4])
async def test_a_lone_caller_of_a_short_model_seldom_waits_for_a_long_one(
    instances: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(instances, monkeypatch)
    short, long = machine.workers.share(), machine.workers.share()
    machine.call(long, LONG, callers=60)
    await machine.run(2)
    waits, before = machine.call(short, SHORT), long.used_by(machine.now)
    await machine.run(6)
    assert median(waits) == 0
    # The long model loses its share of one worker, no more.
    least = 0.4 if instances == 1 else 0.9 * (instances - 1)
    assert long.used_by(machine.now) - before >= 6 * least
    await machine.stop()


async def test_a_worker_is_kept_while_the_short_model_s_caller_pauses_and_the_time_is_charged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(2, monkeypatch)
    short, long = machine.workers.share(), machine.workers.share()
    machine.call(long, LONG, callers=8)
    await machine.run(2)
    before = short.used
    waits = machine.call(short, SHORT, pause=0.2)
    await machine.run(6)
    assert median(waits) == 0
    assert short.used - before > 5  # of which it has run for 0.3 s
    await machine.stop()


async def test_a_worker_is_kept_no_longer_than_the_batch_takes_that_wants_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(2, monkeypatch)
    short, long = machine.workers.share(), machine.workers.share()
    await _run_once(machine, short, SHORT)
    await _run_once(machine, long, LONG)
    await _run_once(machine, short, SHORT)
    waits = machine.call(long, LONG, callers=2, pause=100)
    await machine.run(0.1)
    assert len(waits) == 1
    await machine.run(0.1)
    assert len(waits) == 1
    await machine.run(0.15)
    assert waits == [0, pytest.approx(LONG, abs=0.01)]
    await machine.stop()


async def test_the_timer_ends_the_time_for_which_a_worker_is_kept() -> None:
    """On the real clock, where nothing else happens."""
    workers = Workers(1)
    short, long = workers.share(), workers.share()
    for share, seconds in ((short, 0.001), (long, 0.1), (short, 0.001)):
        worker = await share.acquire()
        await asyncio.sleep(seconds)
        share.release(worker)
    worker = await asyncio.wait_for(long.acquire(), 10)
    assert worker.began - short.ended >= 0.09
    long.release(worker)
    workers.close()


async def test_a_batch_is_alone_unless_something_else_runs_or_waits_or_is_expected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(2, monkeypatch)
    workers, short, long = machine.workers, machine.workers.share(), machine.workers.share()
    worker = await long.acquire()
    assert workers.is_alone(long)
    other = await short.acquire()
    assert not workers.is_alone(long)
    waiting = asyncio.create_task(long.acquire())
    await asyncio.sleep(0)
    machine.now += SHORT
    short.release(other)
    assert not workers.is_alone(long)
    machine.now += LONG
    workers.grant()
    long.release(await waiting)
    long.release(worker)
    machine.now += LONG
    worker = await long.acquire()
    assert workers.is_alone(long)  # the short model was used longer ago than a long batch takes
    await _run_once(machine, short, SHORT)
    assert not workers.is_alone(long)
    machine.now += 2 * LONG
    assert workers.is_alone(long)
    long.release(worker)
    workers.close()


async def test_a_cancelled_wait_leaves_the_workers_to_the_others() -> None:
    workers = Workers(1)
    share = workers.share()
    worker = await share.acquire()
    waits = [asyncio.create_task(share.acquire()) for _ in range(3)]
    await asyncio.sleep(0)
    waits[0].cancel()
    share.release(worker)  # before the cancelled one has run
    granted = await waits[1]
    waits[2].cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    share.release(granted)
    assert workers.idle == 1
    assert not share.is_busy
    workers.close()


async def test_the_wait_counts_no_more_of_other_models_than_their_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(2, monkeypatch)
    one, other = machine.workers.share(), machine.workers.share()
    queues = {"own": 4.0, "same model": 1.0, "other model": 100.0}
    own, same, theirs = (lambda name=name: queues[name] for name in queues)
    one.backlogs += [own, same]
    other.backlogs.append(theirs)
    for share in (one, other):
        (await share.acquire()).expected_seconds = 0.0
    assert one.seconds_until(4.0, own) == (4 + 1 + 5) / 2
    queues["other model"] = 2.0
    assert one.seconds_until(4.0, own) == (4 + 1 + 2) / 2
    _running(other).expected_seconds = 3.0
    machine.now += 1.0
    assert one.seconds_until(4.0, own) == (4 + 1 + 2 + 2) / 2


def _running(share: Share) -> Worker:
    (worker,) = share._running
    return worker


async def _run_once(machine: Machine, share: Share, seconds: float) -> None:
    worker = await share.acquire()
    machine.now += seconds
    share.release(worker)
