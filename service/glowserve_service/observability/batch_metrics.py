"""The metrics and statistics of the batches of one direction of a model."""

from __future__ import annotations

from glowserve_service.errors import QueueFullError, UnavailableError, WaitTooLongError
from glowserve_service.observability.metrics import Metrics
from glowserve_service.observability.statistics import CountedRequest, InferenceStatistics
from glowserve_service.scheduling.batcher import CANCELLED, DEADLINE, BatchRun

_REASONS = ("full", "worker_free", "delay")
# The errors that mean that nothing was done, and the cause that counts their rows.
_REFUSALS: dict[type[BaseException], str] = {
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

    def request(self, rows: int) -> CountedRows:
        """`with metrics.request(rows)` counts its body as a request; if it is refused, counts its rows as dropped."""
        return CountedRows(self, rows, self._statistics.request())

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
        self._queue.observe(*run.waited)


class CountedRows:
    """Counts the body of `with` as a request of so many rows."""

    __slots__ = ("_metrics", "_request", "_rows")

    def __init__(self, metrics: BatchMetrics, rows: int, request: CountedRequest) -> None:
        self._metrics = metrics
        self._rows = rows
        self._request = request

    def __enter__(self) -> None:
        self._request.__enter__()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._request.__exit__(kind)
        if kind and (cause := _REFUSALS.get(kind)):
            self._metrics.dropped(cause, self._rows)
