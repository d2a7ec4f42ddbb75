"""Hears what a batcher does, and tells metrics, statistics and callers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from glowserve.runtime.errors import GlowserveError
from glowserve_service.errors import QueueFullError, UnavailableError, WaitTooLongError
from glowserve_service.front.call import EXECUTION, QUEUE
from glowserve_service.observability.metrics import Metrics
from glowserve_service.observability.statistics import Counts
from glowserve_service.scheduling.batcher import CANCELLED, DEADLINE, Run

_REASONS = ("full", "worker_free", "delay")
_REFUSALS: dict[type[GlowserveError], str] = {
    QueueFullError: "queue_full",
    WaitTooLongError: "wait_too_long",
    UnavailableError: "stopping",
}


class Observer:
    """Of one way through a model. For the event loop's thread alone.

    Args:
        metrics: the service's.
        model: its name.
        direction: forward or reverse.
        counts: what the way has done.
    """

    def __init__(self, metrics: Metrics, model: str, direction: str, counts: Counts) -> None:
        labels = (model, direction)
        self._counts = counts
        self._size = metrics.batch_size.labels(*labels)
        self._queue = metrics.queue_seconds.labels(*labels)
        self._execution = metrics.execution_seconds.labels(*labels)
        self._padding = metrics.padding.labels(*labels)
        # All of them from the start: a rate over a series that begins with 1 is 0.
        self._batches = {reason: metrics.batches.labels(*labels, reason) for reason in _REASONS}
        self._dropped = {
            cause: metrics.dropped.labels(*labels, cause)
            for cause in (*_REFUSALS.values(), CANCELLED, DEADLINE)
        }

    @contextmanager
    def request(self, rows: int) -> Iterator[None]:
        """Counts what happens inside as a request, and its rows as dropped if it is refused."""
        try:
            with self._counts.request():
                yield
        except GlowserveError as error:
            if cause := _REFUSALS.get(type(error)):
                self.dropped(cause, rows)
            raise

    def sent(self, rows: int, reason: str) -> None:
        """A batch goes to a worker."""
        self._size.observe(rows)
        self._batches[reason].inc()

    def dropped(self, cause: str, rows: int) -> None:
        """Rows will not run."""
        self._dropped[cause].inc(rows)

    def ran(self, run: Run) -> None:
        """A batch has run."""
        self._counts.add(run)
        self._padding.inc(run.padding)
        self._execution.observe(run.run_seconds)
        after = run.join_seconds + run.run_seconds + run.part_seconds
        for waited, call in zip(run.waited, run.calls, strict=True):
            self._queue.observe(waited)
            call.spent(QUEUE, waited, ago=after)
            call.spent(EXECUTION, run.run_seconds, ago=run.part_seconds)
