"""The counts and durations that the Open Inference Protocol reports."""

from __future__ import annotations

import asyncio
import time

import pytest
from glowserve_service.observability.statistics import Compute, Duration, InferenceStatistics
from glowserve_service.scheduling.batcher import BatchRun

TWO_REQUESTS = BatchRun(
    5, waited=(0.25, 0.5), join_seconds=1.0, run_seconds=2.0, split_seconds=4.0, padding=3
)
ONE_REQUEST = BatchRun(8, waited=(1.0,), join_seconds=0.5, run_seconds=8.0, split_seconds=0.25)


@pytest.fixture
def statistics() -> InferenceStatistics:
    return InferenceStatistics()


def test_a_new_model_has_done_nothing(statistics: InferenceStatistics) -> None:
    assert statistics == InferenceStatistics(images=0, last_run=0.0)
    assert statistics.batches == {}


def test_waits_and_batch_times_count_once_for_each_request_in_a_batch(
    statistics: InferenceStatistics,
) -> None:
    statistics.add(TWO_REQUESTS)
    statistics.add(ONE_REQUEST)
    assert statistics.queue == Duration(3, 1.75)
    assert statistics.compute == Compute(Duration(3, 2.5), Duration(3, 12.0), Duration(3, 8.25))


def test_batches_count_once_by_their_images_and_padding_is_no_image(statistics: InferenceStatistics) -> None:
    before = time.time()
    for run in (TWO_REQUESTS, ONE_REQUEST, TWO_REQUESTS):
        statistics.add(run)
    assert statistics.images == 18
    assert statistics.batches == {
        5: Compute(Duration(2, 2.0), Duration(2, 4.0), Duration(2, 8.0)),
        8: Compute(Duration(1, 0.5), Duration(1, 8.0), Duration(1, 0.25)),
    }
    assert before <= statistics.last_run <= time.time()


def test_a_request_that_is_answered_is_a_success_with_its_duration(statistics: InferenceStatistics) -> None:
    began = time.monotonic()
    with statistics.request():
        time.sleep(0.01)
    assert statistics.success.count == 1
    assert 0.01 <= statistics.success.seconds <= time.monotonic() - began
    assert statistics.fail == Duration(0, 0.0)


@pytest.mark.parametrize("kind", [ArithmeticError, asyncio.CancelledError])
def test_a_request_that_fails_or_is_cancelled_is_a_failure_and_its_error_is_raised(
    kind: type[BaseException], statistics: InferenceStatistics
) -> None:
    with pytest.raises(kind), statistics.request():
        raise kind
    assert statistics.fail.count == 1
    assert statistics.fail.seconds > 0
    assert statistics.success == Duration(0, 0.0)
