"""What the images that a version scores look like: histograms of scores, anomalies, and whether they have changed.

Images are counted by batch, and at every scrape: one image costs no more than its place in a list.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from glowserve.drift import DriftDetector
from glowserve_service.observability.histograms import BatchHistogram

Float64Array = npt.NDArray[np.float64]

# Drawings have 1 bit a value, photographs 3 to 4, noise 8; other images may have more.
_BITS = (*np.arange(0.25, 2, 0.25).tolist(), *np.arange(2, 5, 0.5).tolist(), 5, 6, 7, 8, 10, 16, np.inf)
_P_VALUES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, np.inf)
_ANOMALY = 0.01
# Images that are counted together.
_BATCH = 64

log = logging.getLogger(__name__)


class Traffic:
    """Counts the scored images of one version of a model, from when it was loaded. Threads may share it.

    Args:
        model: the model's name.
        version: its version.
        detector: of changes; None if the version has no calibration for p-values.
    """

    def __init__(self, model: str, version: int, detector: DriftDetector | None = None) -> None:
        self.key = (model, str(version))
        """The values of its series' labels."""
        self.detector = detector
        self.bits_per_dim, self.p_values = BatchHistogram(_BITS), BatchHistogram(_P_VALUES)
        self.anomalies = 0
        self._waiting: list[tuple[Float64Array, Float64Array | None]] = []
        self._images = 0
        self._lock = threading.Lock()
        # Where there are fewer than 99 calibration images, the smallest p-value is larger.
        self._anomaly = max(_ANOMALY, 1 / (detector.images + 1)) if detector else 0.0

    def add(self, bits_per_dim: Float64Array, p_values: Float64Array | None = None) -> None:
        """Adds the scores of N images.

        Args:
            bits_per_dim: [N]; images that are not finite are left out here, and counted elsewhere.
            p_values: conformal p-values, [N], if they were computed; not used without a detector.
        """
        with self._lock:
            self._waiting.append((bits_per_dim, p_values))
            self._images += len(bits_per_dim)
            if self._images < _BATCH:
                return
        self.count()

    def count(self) -> None:
        """Counts the images that were added since the last time. NumPy takes as long for one image as for many."""
        with self._lock:
            waiting, self._waiting, self._images = self._waiting, [], 0
        if not waiting:
            return
        bits = np.concatenate([bits for bits, _ in waiting])
        self.bits_per_dim.add(bits[np.isfinite(bits)])
        watched = [p_values for _, p_values in waiting if p_values is not None]
        if self.detector is None or not watched:
            return
        p_values = np.concatenate(watched)
        began = self.detector.update(p_values)
        self.p_values.add(p_values)
        with self._lock:  # += is a read and a write
            self.anomalies += int(np.count_nonzero(p_values <= self._anomaly))
        if began:
            lead = self.detector.lead
            log.warning(
                "the traffic of %s version %s has changed: %s images than its calibration allows have a p-value of at "
                "most %.2g",
                *self.key,
                "more" if lead.more else "fewer",
                lead.level,
            )


class TrafficCollector(Collector):
    """The series of the versions that are served, made at every scrape."""

    LABELS = ("model", "version")

    def __init__(self) -> None:
        self._shown: dict[tuple[str, str], Traffic] = {}

    def show(self, traffic: Traffic) -> None:
        """Adds the series of a version. They replace those of the same version loaded before."""
        self._shown = {**self._shown, traffic.key: traffic}

    def hide(self, traffic: Traffic) -> None:
        """Removes them."""
        self._shown = {key: each for key, each in self._shown.items() if each is not traffic}

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        shown = self._shown.values()
        for each in shown:
            each.count()
        watched = [(each, each.detector) for each in shown if each.detector]
        yield self._histogram(
            "bits_per_dim",
            "Bits/dim of the scored images.",
            [(each.key, each.bits_per_dim) for each in shown],
        )
        yield self._histogram(
            "anomaly_p_value",
            "p-values of the scored images: flat while images look like the calibration images.",
            [(each.key, each.p_values) for each, _ in watched],
        )
        anomalies = CounterMetricFamily(
            "glowserve_anomalies",
            "Images with a p-value of at most 0.01, or the smallest that there is, if that is larger.",
            labels=self.LABELS,
        )
        statistic = GaugeMetricFamily(
            "glowserve_drift_statistic",
            "How much speaks for a change of the images, in images: unchanged images reach x after x or more of them "
            "on average.",
            labels=self.LABELS,
        )
        alarms = CounterMetricFamily(
            "glowserve_drift_alarms",
            "How often glowserve_drift_statistic has risen to a billion.",
            labels=self.LABELS,
        )
        for each, detector in watched:
            anomalies.add_metric(each.key, each.anomalies)
            statistic.add_metric(each.key, detector.statistic)
            alarms.add_metric(each.key, detector.alarms)
        yield from (anomalies, statistic, alarms)

    def _histogram(
        self, name: str, text: str, series: Iterable[tuple[tuple[str, str], BatchHistogram]]
    ) -> HistogramMetricFamily:
        family = HistogramMetricFamily(f"glowserve_{name}", text, labels=self.LABELS)
        for key, histogram in series:
            buckets, total = histogram.sample()
            family.add_metric(key, buckets=buckets, sum_value=total)
        return family
