"""What is counted of scored images."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
from glowserve_service.observability.metrics import Metrics
from glowserve_service.observability.traffic import Traffic
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from glowserve.drift import DriftDetector
from glowserve.images import UInt8Array
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.v1 import glow_service_pb2 as pb
from tests.servers import RunServer
from tests.service.metrics import value
from tests.service.stubs import connect
from tests.service.wire import raw

LABELS = {"model": "digits", "version": "1"}
CALIBRATED = ("anomaly_p_value_count", "anomalies_total", "drift_statistic", "drift_alarms_total")
Sample = Callable[..., float | None]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def sample(metrics: Metrics) -> Sample:
    """Reads a sample of the metric glowserve_NAME of version 1 of the digits."""
    return lambda name, **labels: metrics.registry.get_sample_value(f"glowserve_{name}", {**LABELS, **labels})


def calibrated(metrics: Metrics, n: int = 999) -> Traffic:
    """The traffic of version 1 of the digits, shown in the metrics."""
    traffic = Traffic("digits", 1, DriftDetector(np.arange(n)))
    metrics.traffic.show(traffic)
    return traffic


def test_every_series_begins_at_zero(metrics: Metrics, sample: Sample) -> None:
    """Prometheus takes no increase from a series that begins with 1."""
    calibrated(metrics)
    assert [sample(name) for name in ("bits_per_dim_count", *CALIBRATED)] == [0, 0, 0, 0, 0]


def test_a_histogram_counts_values_up_to_the_end_of_each_bucket(metrics: Metrics, sample: Sample) -> None:
    p_values = np.array([0.001, 0.01, 0.011, 0.1, 0.9, 1.0])
    calibrated(metrics).add(np.array([0.25, 3.34, 3.5, 8.01, 16, 1e9]), p_values)
    ends = ("0.01", "0.02", "0.1", "0.9", "1.0", "+Inf")
    assert [sample("anomaly_p_value_bucket", le=end) for end in ends] == [2, 3, 4, 5, 6, 6]
    assert sample("anomaly_p_value_count") == 6
    assert sample("anomaly_p_value_sum") == pytest.approx(2.022)
    ends = ("0.25", "3.0", "3.5", "8.0", "10.0", "16.0", "+Inf")
    assert [sample("bits_per_dim_bucket", le=end) for end in ends] == [1, 1, 3, 3, 4, 5, 6]


def test_uniform_p_values_make_a_flat_histogram(metrics: Metrics, sample: Sample) -> None:
    calibrated(metrics).add(np.full(1000, 3.3), np.arange(1, 1001) / 1000)
    for end in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9, 1.0):
        assert sample("anomaly_p_value_bucket", le=str(end)) == pytest.approx(1000 * end)


@pytest.mark.parametrize(("n", "anomalies"), [(999, 10), (99, 1), (9, 1)])
def test_an_anomaly_has_a_p_value_of_a_hundredth_or_the_smallest_there_is(
    metrics: Metrics, sample: Sample, n: int, anomalies: int
) -> None:
    calibrated(metrics, n).add(np.full(n + 1, 3.3), np.arange(1, n + 2) / (n + 1))
    assert sample("anomalies_total") == anomalies


def test_images_that_are_not_finite_have_p_values_and_no_bits(metrics: Metrics, sample: Sample) -> None:
    calibrated(metrics).add(np.array([np.inf, 3.0]), np.array([0.001, 0.5]))
    assert sample("bits_per_dim_count") == 1
    assert sample("bits_per_dim_sum") == 3
    assert sample("anomaly_p_value_count") == 2


def test_images_whose_p_values_nobody_asked_for_are_no_evidence(metrics: Metrics, sample: Sample) -> None:
    calibrated(metrics).add(np.array([3.0]))
    assert sample("bits_per_dim_count") == 1
    assert sample("anomaly_p_value_count") == sample("drift_statistic") == 0


def test_a_version_without_calibration_shows_its_bits_alone(metrics: Metrics, sample: Sample) -> None:
    traffic = Traffic("digits", 1)
    metrics.traffic.show(traffic)
    traffic.add(np.array([3.0]), np.array([0.5]))
    assert [sample(name) for name in ("bits_per_dim_count", *CALIBRATED)] == [1, None, None, None, None]


def test_a_change_is_counted_and_logged_once_while_it_lasts(
    metrics: Metrics, sample: Sample, caplog: pytest.LogCaptureFixture
) -> None:
    traffic, generator = calibrated(metrics), np.random.default_rng(0)
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            traffic.add(np.full(100, 3.0), 1 - 0.5 * generator.random(100))
    assert sample("drift_alarms_total") == 1
    assert (sample("drift_statistic") or 0) >= 1e9
    (record,) = caplog.records
    assert record.getMessage() == (
        "the traffic of digits version 1 has changed: fewer images than its calibration allows have a p-value of at "
        "most 0.5"
    )


def test_a_version_that_is_loaded_again_begins_anew(metrics: Metrics, sample: Sample) -> None:
    old = calibrated(metrics)
    old.add(np.full(100, 3.0), np.full(100, 0.5))
    new = calibrated(metrics)
    assert sample("anomaly_p_value_count") == sample("drift_statistic") == 0
    old.add(np.full(100, 3.0), np.full(100, 0.5))  # a call that still has the old one leased
    metrics.traffic.hide(old)
    assert sample("anomaly_p_value_count") == 0
    metrics.traffic.hide(new)
    assert sample("anomaly_p_value_count") is None


def test_threads_lose_no_image_and_scrapes_see_whole_batches(metrics: Metrics, sample: Sample) -> None:
    traffic, interval = calibrated(metrics), sys.getswitchinterval()

    def score() -> None:
        for _ in range(300):
            traffic.add(np.full(64, 3.0), np.linspace(0.01, 0.95, 64))

    threads = [threading.Thread(target=score) for _ in range(8)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert (sample("bits_per_dim_count") or 0) % 64 == 0
    finally:
        sys.setswitchinterval(interval)
    assert sample("bits_per_dim_count") == sample("anomaly_p_value_count") == 8 * 300 * 64
    assert sample("anomalies_total") == 8 * 300
    assert sample("bits_per_dim_sum") == pytest.approx(8 * 300 * 64 * 3)


def test_both_formats_have_the_series(metrics: Metrics) -> None:
    calibrated(metrics).add(np.array([3.0]), np.array([0.5]))
    for page in (generate_latest(metrics.registry), generate_openmetrics(metrics.registry)):
        assert b'glowserve_bits_per_dim_bucket{le="+Inf",model="digits",version="1"} 1' in page
        assert b'glowserve_drift_alarms_total{model="digits",version="1"} 0' in page


# A real server


def test_scored_images_are_counted_whichever_protocol_they_come_by(
    run_server: RunServer, digits: UInt8Array
) -> None:
    with run_server() as server, connect(server) as stubs:
        scores = stubs.glow.Score(pb.ScoreRequest(images=raw(digits[:5]))).scores
        list(stubs.glow.ScoreStream(iter([pb.ScoreRequest(images=raw(digits[5:8]))])))
        request = oip.ModelInferRequest(model_name="digits")
        request.inputs.add(name="image", datatype="UINT8", shape=[2, *digits.shape[1:]])
        request.raw_input_contents.append(digits[:2].tobytes())
        stubs.inference.ModelInfer(request)
        stubs.glow.Encode(pb.EncodeRequest(images=raw(digits[:3])))
        assert value(server, "bits_per_dim_count", **LABELS) == 10
        mean = value(server, "bits_per_dim_sum", **LABELS) / 10
        assert mean == pytest.approx(np.mean([score.bits_per_dim for score in scores]), rel=0.3)
