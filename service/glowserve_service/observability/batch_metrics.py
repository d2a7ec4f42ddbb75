"""The metrics and statistics of the batches of one direction of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from glowserve.runtime.errors import GlowserveError
from glowserve_service.errors import QueueFullError, UnavailableError, WaitTooLongError
from glowserve_service.observability.metrics import Metrics
from glowserve_service.observability.statistics import InferenceStatistics
from glowserve_service.scheduling.batcher import CANCELLED, DEADLINE, BatchRun

_REASONS = ("full", "worker_free", "delay")
# The errors that mean that nothing was done, and the cause that counts their rows.
_REFUSALS: dict[type[GlowserveError], str] = {
    QueueFullError: "queue_full",
    WaitTooLongError: "wait_too_long",
    UnavailableError: "stopping",
}


class BatchMetrics:
    """Counts requests and batches in metrics and statistics. For the event loop's thread alone.

    Args:
        metrics: the service's.
        model: the model's name.
        direction: "forward" or "reverse".
        statistics: of that direction.
    """

    def __init__(self, metrics: Metrics, model: str, direction: str, statistics: InferenceStatistics) -> None:
        labels = (model, direction)
        self._statistics = statistics
        self._size = metrics.batch_size.labels(*labels)
        self._queue = metrics.queue_seconds.labels(*labels)
        self._execution = metrics.execution_seconds.labels(*labels)
        self._padding = metrics.padding.labels(*labels)
        # All series exist from the start. Prometheus would miss the first increase of a series that begins with 1.
        self._batches = {reason: metrics.batches.labels(*labels, reason) for reason in _REASONS}
        self._dropped = {
            cause: metrics.dropped.labels(*labels, cause)
            for cause in (*_REFUSALS.values(), CANCELLED, DEADLINE)
        }

    @contextmanager
    def request(self, rows: int) -> Iterator[None]:
        """Counts its body as a request; if the request is refused, counts its rows as dropped."""
        try:
            with self._statistics.request():
                yield
        except GlowserveError as error:
            if cause := _REFUSALS.get(type(error)):
                self.dropped(cause, rows)
            raise

    def dispatched(self, rows: int, reason: str) -> None:
        """Counts a batch that goes to a worker."""
        self._size.observe(rows)
        self._batches[reason].inc()

    def dropped(self, cause: str, rows: int) -> None:
        """Counts rows that will not run. The cause is CANCELLED, DEADLINE or one of `_REFUSALS`."""
        self._dropped[cause].inc(rows)

    def ran(self, run: BatchRun) -> None:
        """Counts a batch that has run."""
        self._statistics.add(run)
        self._padding.inc(run.padding)
        self._execution.observe(run.run_seconds)
        for waited in run.waited:
            self._queue.observe(waited)
