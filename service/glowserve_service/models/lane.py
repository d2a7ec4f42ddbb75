"""One direction of a served model: a batcher with its metrics and statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from glowserve_service.config import ServiceConfig
from glowserve_service.observability.batch_metrics import BatchMetrics
from glowserve_service.observability.metrics import Metrics
from glowserve_service.observability.statistics import InferenceStatistics
from glowserve_service.scheduling.batcher import Batcher
from glowserve_service.scheduling.engine_threads import Array, Rows
from glowserve_service.scheduling.share import Share
from glowserve_service.scheduling.submission import Answer
from glowserve_service.scheduling.ticket import Ticket

DIRECTIONS = FORWARD, REVERSE, EXPLAIN = "forward", "reverse", "explain"
"""The directions, as metrics name them: from images, to images, and from images by the third graph."""


class Lane:
    """Runs rows of concurrent calls in batches.

    Args:
        function: runs a batch, in a thread.
        model: the model's name.
        direction: FORWARD, REVERSE or EXPLAIN.
        share: the model's, of the workers.
        widens: see `Batcher`.
        config: the service's.
        metrics: the service's.
        buckets: the sizes that batches are padded to; none: no padding.
    """

    def __init__(
        self,
        function: Callable[..., Rows],
        model: str,
        direction: str,
        *,
        share: Share,
        widens: bool,
        config: ServiceConfig,
        metrics: Metrics,
        buckets: Sequence[int],
    ) -> None:
        self.statistics = InferenceStatistics()
        """What the lane has done."""
        self._metrics = BatchMetrics(metrics, model, direction, self.statistics)
        self._batcher = Batcher(
            function,
            share,
            widens=widens,
            max_batch_size=config.max_batch_size,
            max_queue_size=config.max_queue_size,
            max_delay_seconds=config.max_queue_delay_ms / 1000,
            buckets=buckets,
            on_batch=self._metrics.dispatched,
            on_drop=self._metrics.dropped,
            on_run=self._metrics.ran,
        )

    @property
    def queue_length(self) -> int:
        """Images that wait. From any thread."""
        return self._batcher.queue_length

    async def run(self, *rows: Array, ticket: Ticket) -> Answer:
        """Runs a caller's rows; see `Batcher.submit`, also for the errors."""
        with self._metrics.request(len(rows[0])):
            return await self._batcher.submit(*rows, ticket=ticket)

    async def close(self) -> None:
        """Refuses new rows, and waits for the accepted ones."""
        await self._batcher.close()
