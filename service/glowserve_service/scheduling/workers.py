"""The workers that run batches, and which model gets the next one that is free.

Models share the workers by time. The model that has used the least goes next, as in start-time fair queueing (Goyal,
Vin and Cheng, 1996): a model that comes back after a pause begins where the others are, so it saves no time up.

A batch that runs cannot be interrupted. So a model of short batches, whose callers send the next call a moment after an
answer, would wait for a long batch of another model each time. Hence the last free worker is kept for it a while, as in
anticipatory scheduling (Iyer and Druschel, 2001), and the time for which it is kept is charged to it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from glowserve_service.scheduling.engine_threads import EngineThreads, Rows, Run
from glowserve_service.scheduling.share import Share

# The longest for which a worker is kept. It is kept no longer than the batch would take that wants it.
_MOST_KEPT_SECONDS = 1.0
# A worker is kept only from batches that take so many times as long.
_LONGER = 2.0


class Workers:
    """Workers that all models of a service share. For the event loop's thread alone.

    Args:
        instances: how many batches run at the same time.
    """

    def __init__(self, instances: int) -> None:
        self.instances = instances
        self.idle = instances
        """Workers that run nothing."""
        self._threads = EngineThreads()
        self._active: list[Share] = []  # those that wait or run, or did within _MOST_KEPT_SECONDS
        self._clock = 0.0  # what the share had used that got the last worker
        self._kept: tuple[Share, float] | None = None  # the share that a worker is kept for, and since when
        self._timer: asyncio.TimerHandle | None = None

    def share(self) -> Share:
        """A new model's share of them."""
        return Share(self)

    async def run(self, function: Callable[..., Rows], rows: Rows) -> Run:
        """Runs a function in a thread. The caller has acquired a worker."""
        return await self._threads.run(function, rows)

    def close(self, *, wait: bool = True) -> None:
        """Takes no more batches. Blocks until those that run have ended, unless `wait` is False."""
        if self._timer:
            self._timer.cancel()
        self._threads.close(wait=wait)

    def wake(self, share: Share) -> None:
        """A share that neither waited nor ran is about to wait."""
        self._charge(time.monotonic())
        share.used = max(share.used, self._clock)
        if share not in self._active:
            self._active.append(share)

    def grant(self) -> None:
        """Gives idle workers to the shares that wait."""
        now = time.monotonic()
        self._charge(now)
        while self.idle and (share := self._next(now)):
            self._clock = max(self._clock, share.used_by(now))
            self.idle -= 1
            share.start(now)

    def others(self, share: Share) -> list[Share]:
        """The other shares that wait or run, or did a moment ago."""
        if self._active == [share]:  # nearly always
            return []
        now = time.monotonic()
        self._active = [
            each for each in self._active if each.is_busy or now - each.ended < _MOST_KEPT_SECONDS
        ]
        return [each for each in self._active if each is not share]

    def is_alone(self, share: Share) -> bool:
        """Whether a share's only batch is the only one that runs, none waits, and no worker would be kept from it."""
        return (
            self.idle == self.instances - 1
            and not any(each.waits for each in self._active)
            and self._awaited(share, time.monotonic()) is None
        )

    def _next(self, now: float) -> Share | None:
        """The share that gets an idle worker."""
        waiting = [share for share in self._active if share.waits]
        for share in sorted(waiting, key=lambda each: each.used_by(now)) if len(waiting) > 1 else waiting:
            awaited = self._awaited(share, now) if self.idle == 1 else None
            if awaited is None:
                return share
            self._keep(awaited, now, self._kept_seconds(share) - (now - awaited.ended))
        return None

    def _awaited(self, share: Share, now: float) -> Share | None:
        """A share of shorter batches that is expected back before a batch of this one would end."""
        for other in self.others(share):
            if (
                not other.is_busy
                and _LONGER * other.batch_seconds < share.batch_seconds
                and now - other.ended < self._kept_seconds(share)
                and other.used <= share.used_by(now) + share.batch_seconds
            ):
                return other
        return None

    def _kept_seconds(self, share: Share) -> float:
        return min(share.batch_seconds, _MOST_KEPT_SECONDS)

    def _charge(self, now: float) -> None:
        """Charges the time for which a worker was kept."""
        if self._kept:
            share, since = self._kept
            share.used += now - since
            self._kept = None

    def _keep(self, share: Share, now: float, seconds: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._kept = share, now
        self._timer = asyncio.get_running_loop().call_later(seconds, self.grant)
