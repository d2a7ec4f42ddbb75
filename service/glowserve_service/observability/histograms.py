"""Histograms whose values are counted together, at every scrape or when many wait.

Until then a value costs no more than its place in a list. A histogram of prometheus_client takes two locks and walks
its buckets for each, and a call has five values.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Float64Array = npt.NDArray[np.float64]

# So many values are counted together at the latest: they take 30 KB, and 0.05 ms.
_MOST_WAITING = 1024


class Histogram(Collector):
    """A histogram with labels, as Prometheus scrapes it.

    Args:
        name: the metric's.
        text: its help text.
        labels: their names.
        ends: where the buckets end, ascending, without infinity.
    """

    def __init__(self, name: str, text: str, labels: Sequence[str], ends: Sequence[float]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._ends = (*ends, np.inf)
        self._series: dict[tuple[str, ...], GatheredHistogram] = {}
        self._lock = threading.Lock()

    def labels(self, *values: str) -> GatheredHistogram:
        """The series with these values of the labels, which exists from now on."""
        with self._lock:
            return self._series.setdefault(values, GatheredHistogram(self._ends))

    def counted(self) -> dict[tuple[str, ...], BatchHistogram]:
        """What has been counted so far, by the values of the labels."""
        with self._lock:
            series = list(self._series.items())
        for _, each in series:
            each.count()
        return {values: each.counted for values, each in series}

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """See Collector."""
        yield HistogramMetricFamily(self._name, self._text, labels=self._labels)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """See Collector."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        with self._lock:
            series = list(self._series.items())
        for values, each in series:
            each.count()
            buckets, total = each.counted.sample()
            family.add_metric(values, buckets=buckets, sum_value=total)
            of_series = dict(zip(self._labels, values, strict=True))
            family.add_sample(f"{self._name}_created", of_series, each.created)
        yield family


class GatheredHistogram:
    """One series. Threads may share it.

    Args:
        ends: where the buckets end, ascending, the last one at infinity.
    """

    def __init__(self, ends: Sequence[float]) -> None:
        self.counted = BatchHistogram(ends)
        """What has been counted; `count` adds the rest."""
        self.created = time.time()
        """In seconds since 1970."""
        # Never replaced by a new list: a thread may be about to append to it while another counts its values.
        self._waiting: list[float] = []
        self._lock = threading.Lock()

    def observe(self, *values: float) -> None:
        """Adds finite values."""
        self._waiting += values
        if len(self._waiting) >= _MOST_WAITING:
            self.count()

    def count(self) -> None:
        """Counts the values that wait."""
        with self._lock:
            n = len(self._waiting)
            values = self._waiting[:n]
            del self._waiting[:n]
            self.counted.add(np.array(values, np.float64))


class BatchHistogram:
    """A histogram that takes whole batches. Threads may share it.

    Args:
        ends: where the buckets end, ascending, the last one at infinity, [B].
    """

    def __init__(self, ends: Sequence[float]) -> None:
        self._ends = np.array(ends)
        self._counts, self._sum = np.zeros(len(ends), np.int64), 0.0
        self._lock = threading.Lock()

    def add(self, values: Float64Array) -> None:
        """Adds N finite values."""
        counts = np.bincount(np.searchsorted(self._ends, values), minlength=len(self._ends))
        with self._lock:
            self._counts += counts
            self._sum += float(values.sum())

    def merge(self, counts: Sequence[int], total: float) -> None:
        """Adds values that were counted elsewhere: how many are in each bucket, [B], and their sum."""
        with self._lock:
            self._counts += np.array(counts, np.int64)
            self._sum += total

    def totals(self) -> tuple[list[int], float]:
        """How many values are in each bucket, [B], and the sum of the values."""
        with self._lock:
            return self._counts.tolist(), self._sum

    def sample(self) -> tuple[list[tuple[str, float]], float]:
        """The end of each bucket and how many values are at most that, and the sum of the values."""
        with self._lock:
            counts, total = self._counts.cumsum().tolist(), self._sum
        return list(zip(map(floatToGoString, self._ends), counts, strict=True)), total
