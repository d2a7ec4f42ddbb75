"""BatchMetrics alone, without a server: what one direction of a model counts."""

from __future__ import annotations

import asyncio
import math

import pytest
from glowserve_service.errors import DeadlineError, QueueFullError, UnavailableError, WaitTooLongError
from glowserve_service.observability.batch_metrics import BatchMetrics
from glowserve_service.observability.metrics import Metrics
from glowserve_service.observability.statistics import Compute, Duration, InferenceStatistics
from glowserve_service.scheduling.batcher import CANCELLED, DEADLINE, BatchRun

CAUSES = ("queue_full", "wait_too_long", "stopping", CANCELLED, DEADLINE)


class Counted:
    """Batch metrics in a registry of their own."""

    def __init__(self) -> None:
        self._metrics = Metrics()
        self.statistics = InferenceStatistics()
        self.batches = BatchMetrics(self._metrics, "digits", "forward", self.statistics)

    def value(self, name: str, **labels: str) -> float | None:
        labels |= {"model": "digits", "direction": "forward"}
        return self._metrics.registry.get_sample_value(f"glowserve_{name}", labels)

    def dropped(self) -> dict[str, float | None]:
        """Dropped images by cause; causes without any left out."""
        values = {cause: self.value("dropped_images_total", cause=cause) for cause in CAUSES}
        return {cause: value for cause, value in values.items() if value != 0}


@pytest.fixture
def counted() -> Counted:
    return Counted()


def test_every_series_begins_with_0(counted: Counted) -> None:
    assert counted.dropped() == {}
    for reason in ("full", "worker_free", "delay"):
        assert counted.value("batches_total", reason=reason) == 0
    for name in ("padded_rows_total", "batch_size_count", "queue_seconds_count", "execution_seconds_count"):
        assert counted.value(name) == 0


def test_a_dispatched_batch_counts_by_its_reason_and_its_size(counted: Counted) -> None:
    counted.batches.dispatched(8, "full")
    counted.batches.dispatched(3, "delay")
    counted.batches.dispatched(2, "delay")
    assert counted.value("batches_total", reason="full") == 1
    assert counted.value("batches_total", reason="delay") == 2
    assert counted.value("batch_size_sum") == 13
    assert counted.value("batch_size_bucket", le="4.0") == 2


def test_a_batch_that_has_run_counts_its_time_its_padding_and_each_wait(counted: Counted) -> None:
    run = BatchRun(5, waited=(0.25, 0.5), join_seconds=1.0, run_seconds=2.0, split_seconds=4.0, padding=3)
    counted.batches.ran(run)
    assert counted.value("execution_seconds_count") == 1
    assert counted.value("execution_seconds_sum") == 2.0
    assert counted.value("queue_seconds_count") == 2
    assert counted.value("queue_seconds_sum") == 0.75
    assert counted.value("padded_rows_total") == 3
    assert counted.statistics.images == 5
    assert counted.statistics.batches == {5: Compute(Duration(1, 1.0), Duration(1, 2.0), Duration(1, 4.0))}


@pytest.mark.parametrize("cause", CAUSES)
def test_dropped_rows_count_by_cause(cause: str, counted: Counted) -> None:
    counted.batches.dropped(cause, 7)
    assert counted.dropped() == {cause: 7}


@pytest.mark.parametrize(
    ("error", "dropped"),
    [
        (QueueFullError("full"), {"queue_full": 6}),
        (WaitTooLongError("too long"), {"wait_too_long": 6}),
        (UnavailableError("stopping"), {"stopping": 6}),
        (DeadlineError("late"), {}),  # the batcher counts these rows itself
        (asyncio.CancelledError(), {}),
        (ArithmeticError(), {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_rows_of_a_refused_request_are_dropped_and_its_error_is_raised(
    error: BaseException, dropped: dict[str, float], counted: Counted
) -> None:
    with pytest.raises(type(error)) as caught, counted.batches.request(6):
        raise error
    assert caught.value is error
    assert counted.dropped() == dropped
    assert counted.statistics.fail.count == 1


def test_a_request_that_is_answered_is_a_success(counted: Counted) -> None:
    with counted.batches.request(6):
        pass
    assert counted.dropped() == {}
    assert counted.statistics.success.count == 1
    assert math.isfinite(counted.statistics.success.seconds)
