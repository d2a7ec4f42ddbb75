"""What a process counts for another one's metrics: increases of counters and histograms since the last time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prometheus_client import Counter

from glowserve_service.observability import logs
from glowserve_service.observability.histograms import Histogram
from glowserve_service.observability.metrics import Metrics

# The metrics of calls, as `Metrics` names them. All others are those of models and batches.
_COUNTERS = ("requests", "not_finite", "redrawn_samples", "failed_decodes", "inexact_encodings")
_HISTOGRAMS = ("request_seconds", "preparation_seconds", "serialization_seconds")
_GAUGES = ("requests_in_flight", "received_bytes", "descriptors_short")

DROPPED_LINES = "dropped_lines"
"""How many lines of its log a process has dropped since its start."""


class Delta(NamedTuple):
    """The increase of a series."""

    metric: str
    """An attribute of `Metrics`."""
    labels: list[str]
    amounts: list[float]
    """Of a counter its increase; of a histogram that of each bucket, and that of the sum."""


class Deltas:
    """The increases of one process's metrics.

    Args:
        metrics: that process's.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._before: dict[tuple[str, tuple[str, ...]], list[float]] = {}

    def take(self) -> list[Delta]:
        """The increases since the last time, and the new series, which may still be 0."""
        found = []
        for metric, labels, now in self._totals():
            before = self._before.get((metric, labels))
            if before != now:
                self._before[metric, labels] = now
                old = before or [0.0] * len(now)
                found.append(Delta(metric, list(labels), [b - a for a, b in zip(old, now, strict=True)]))
        return found

    def _totals(self) -> Iterator[tuple[str, tuple[str, ...], list[float]]]:
        for metric in _COUNTERS:
            (family,) = getattr(self._metrics, metric).collect()
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    yield metric, tuple(sample.labels.values()), [sample.value]
        for metric in _HISTOGRAMS:
            histogram: Histogram = getattr(self._metrics, metric)
            for labels, counted in histogram.counted().items():
                counts, total = counted.totals()
                yield metric, labels, [*counts, total]


def add(metrics: Metrics, deltas: Iterable[Delta]) -> None:
    """Adds increases to the metrics of this process."""
    for metric, labels, amounts in deltas:
        series = getattr(metrics, metric)
        if isinstance(series, Counter):
            series.labels(*labels).inc(amounts[0])
        else:
            series.labels(*labels).counted.merge([int(count) for count in amounts[:-1]], amounts[-1])


def gauges(metrics: Metrics) -> dict[str, float]:
    """The gauges of calls of this process, by the attribute of `Metrics`, and DROPPED_LINES."""
    found = {name: next(iter(getattr(metrics, name).collect())).samples[0].value for name in _GAUGES}
    return found | {DROPPED_LINES: logs.dropped_lines()}
