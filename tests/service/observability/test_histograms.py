"""Histograms whose values are counted together, compared with those of prometheus_client."""

from __future__ import annotations

import threading

import numpy as np
import prometheus_client
import pytest
from glowserve_service.observability.histograms import Histogram
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

ENDS = (0.1, 0.25, 1, 2.5)
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def histogram(registry: CollectorRegistry) -> Histogram:
    made = Histogram("seconds", "Of something.", ["model", "method"], ENDS)
    registry.register(made)
    return made


def samples(families: list[Metric]) -> Samples:
    """The values by name and labels, without the times when series were created."""
    return {
        (each.name, frozenset(each.labels.items())): each.value
        for family in families
        for each in family.samples
        if not each.name.endswith("_created")
    }


def test_a_scrape_is_that_of_the_library(
    histogram: Histogram, registry: CollectorRegistry, rng: np.random.Generator
) -> None:
    theirs = CollectorRegistry()
    expected = prometheus_client.Histogram(
        "seconds", "Of something.", ["model", "method"], buckets=ENDS, registry=theirs
    )
    # Values on the ends of buckets are in them; 3,000 are counted in several steps.
    for labels, values in (
        (("a", "Score"), [*ENDS, 0.0, 7.5, *rng.exponential(1, 3000).tolist()]),
        (("b", "Score"), [0.5]),
        (("b", "Sample"), []),
    ):
        for each in (histogram, expected):
            series = each.labels(*labels)
            for value in values:
                series.observe(value)
        found, wanted = samples(list(registry.collect())), samples(list(theirs.collect()))
        assert found.keys() == wanted.keys()
        assert found == pytest.approx(wanted)

    def without_numbers(page: bytes) -> list[str]:
        return sorted(line.rpartition(" ")[0] for line in page.decode().splitlines())

    assert without_numbers(generate_latest(registry)) == without_numbers(generate_latest(theirs))


def test_a_value_that_was_observed_is_in_the_next_scrape(
    histogram: Histogram, registry: CollectorRegistry
) -> None:
    series = histogram.labels("a", "Score")
    for i in range(1, 100):
        series.observe(0.5)
        labels = {"model": "a", "method": "Score"}
        assert registry.get_sample_value("seconds_count", labels) == i
        assert registry.get_sample_value("seconds_bucket", labels | {"le": "0.25"}) == 0
        assert registry.get_sample_value("seconds_bucket", labels | {"le": "1.0"}) == i


def test_the_series_of_equal_labels_is_one(histogram: Histogram) -> None:
    assert histogram.labels("a", "Score") is histogram.labels("a", "Score")


def test_no_value_is_lost_between_threads_and_scrapes(
    histogram: Histogram, registry: CollectorRegistry
) -> None:
    n, threads = 20_000, 4

    def observe() -> None:
        for i in range(n):
            histogram.labels("a", "Score").observe(i % 2)

    adding = [threading.Thread(target=observe) for _ in range(threads)]
    for thread in adding:
        thread.start()
    counts = []
    while any(thread.is_alive() for thread in adding):
        counts.append(registry.get_sample_value("seconds_count", {"model": "a", "method": "Score"}) or 0)
    for thread in adding:
        thread.join()
    assert counts == sorted(counts)
    found = samples(list(registry.collect()))
    labels = {("model", "a"), ("method", "Score")}
    assert found["seconds_count", frozenset(labels)] == n * threads
    assert found["seconds_sum", frozenset(labels)] == n * threads / 2
    assert found["seconds_bucket", frozenset(labels | {("le", "0.1")})] == n * threads / 2
