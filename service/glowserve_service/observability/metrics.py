"""The metrics that Prometheus scrapes. docs/operations.md has a table of them, which `make docs` renews.

Labels take few values: names of models that were found, methods, status codes, and fixed words. A caller cannot create
a series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, RestrictedRegistry

from glowserve_service.observability import logs
from glowserve_service.observability.histograms import Histogram
from glowserve_service.observability.traffic import TrafficCollector
from glowserve_service.security.certificates import Certificates

# A call may have a deadline of a minute; a call to a small model takes two milliseconds.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# Stages of a call are shorter: writing a tensor takes a tenth of a millisecond.
_STAGE_SECONDS = (0.0001, 0.00025, 0.0005, *_SECONDS[:-2])
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Description(NamedTuple):
    """What the table of metrics says about one metric."""

    name: str
    """As it is scraped: counters end in _total."""
    kind: str
    """counter, gauge or histogram."""
    labels: tuple[str, ...]
    text: str


class Metrics:
    """The metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = _Registry()
        self.descriptions: list[Description] = []
        """Of every metric but those of the process and of Python."""
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._add_calls()
        self._add_stages()
        self._add_batches()
        self._add_images()
        self._add_models()
        self._add_traffic()
        self._add_log()
        self._add_descriptors()
        self._add_certificates()

    def before_scrapes(self, refresh: Callable[[], None]) -> None:
        """Has each scrape call a function first, in its thread."""
        self.registry.refresh = refresh

    def count_dropped_lines(self, count: Callable[[], float]) -> None:
        """Has each scrape ask a function, and not this process's log, how many lines were dropped."""
        self._dropped_lines.count = count

    def show_certificates(self, certificates: Certificates) -> None:
        """Has each scrape say when these expire."""
        self._expiry.certificates = certificates

    def _add_calls(self) -> None:
        self.ready = self._gauge("ready", "1 while the service accepts calls, else 0.", [])
        self.requests = self._counter(
            "requests",
            "Finished calls. model is empty if the call found no model, or several.",
            ["method", "model", "code"],
        )
        self.request_seconds = self._histogram(
            "request_duration_seconds", "Time from the arrival of a call to its end.", ["method"], _SECONDS
        )
        self.requests_in_flight = self._gauge("requests_in_flight", "Unfinished calls.", [])
        self.received_bytes = self._gauge(
            "received_bytes",
            "Bytes of requests that are received and not answered, or that threads still work on.",
            [],
        )

    def _add_stages(self) -> None:
        by_method, by_direction = ["model", "method"], ["model", "direction"]
        self.preparation_seconds = self._histogram(
            "preparation_seconds",
            "Time per successful call for parsing requests, decoding images, and drawing noise and latents.",
            by_method,
            _STAGE_SECONDS,
        )
        self.queue_seconds = self._histogram(
            "queue_seconds",
            "Time that a call's images in one batch waited in the queue.",
            by_direction,
            _STAGE_SECONDS,
        )
        self.execution_seconds = self._histogram(
            "execution_seconds",
            "Time that ONNX Runtime took for a batch.",
            by_direction,
            _STAGE_SECONDS,
        )
        self.serialization_seconds = self._histogram(
            "serialization_seconds",
            "Time per successful call for encoding images and serializing responses.",
            by_method,
            _STAGE_SECONDS,
        )

    def _add_batches(self) -> None:
        labels = ["model", "direction"]
        self.batches = self._counter("batches", "Batches dispatched, by reason.", [*labels, "reason"])
        self.batch_size = self._histogram("batch_size", "Images per batch.", labels, _ROWS)
        self.padding = self._counter("padded_rows", "Rows of zeros that batches were padded with.", labels)
        self.queue_length = self._gauge("queue_length", "Images waiting in the queue.", labels)
        self.dropped = self._counter(
            "dropped_images", "Images that left the queue without running, by cause.", [*labels, "cause"]
        )

    def _add_images(self) -> None:
        self.not_finite = self._counter(
            "not_finite_images", "Images with a NaN or infinite result.", ["model", "method"]
        )
        self.redrawn_samples = self._counter(
            "redrawn_samples", "Attempts to draw samples again that were not finite.", ["model"]
        )
        self.failed_decodes = self._counter(
            "failed_decodes",
            "Calls whose pictures were given up: decoding was late, took too much memory, or crashed.",
            ["reason"],
        )
        self.inexact_encodings = self._counter(
            "inexact_encodings", "Encoded images that do not decode to the same image.", ["model"]
        )

    def _add_models(self) -> None:
        self.hanging_loads = self._gauge(
            "hanging_loads", "Loads and reads of the repository that took too long and have not ended.", []
        )
        self.model_loads = self._counter(
            "model_loads", "Attempts to load a version of a model, by outcome.", ["model", "outcome"]
        )
        self.model_ready = self._gauge(
            "model_ready", "1 while a version works, 0 after its engine failed.", ["model", "version"]
        )
        self.canary_checks = self._counter(
            "canary_checks", "Canary checks, by outcome: ok or failed.", ["model", "outcome"]
        )
        self.model_info = self._gauge(
            "model_info",
            "1 for every model that is served.",
            ["model", "version", "device", "provider", "precision"],
        )
        self.cpu_fallback = self._gauge(
            "cpu_fallback",
            "1 for a version that runs on the CPU although ONNX Runtime supports CUDA and the device is auto, else 0.",
            ["model", "version"],
        )
        self.graph_nodes = self._gauge(
            "graph_nodes",
            "Nodes of a graph, by the ONNX Runtime execution provider that runs them.",
            ["model", "version", "graph", "provider"],
        )

    def _add_traffic(self) -> None:
        self.traffic = TrafficCollector()
        """The series of each version's images."""
        for family in self.traffic.collect():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            self.descriptions.append(
                Description(name, family.type, TrafficCollector.LABELS, family.documentation)
            )
        self.registry.register(self.traffic)

    def _add_log(self) -> None:
        name, text = "glowserve_dropped_log_lines", "Log lines dropped because standard error was not read."
        self.descriptions.append(Description(f"{name}_total", "counter", (), text))
        self._dropped_lines = _DroppedLogLines(name, text)
        self.registry.register(self._dropped_lines)

    def _add_descriptors(self) -> None:
        text = "1 while so many file descriptors are open that connections may be refused, else 0."
        self.descriptors_short = self._gauge("descriptors_short", text, [])

    def _add_certificates(self) -> None:
        name, labels = "certificate_expiry_timestamp_seconds", ["file"]
        text = "When a file of certificates expires, in Unix time. file is tls_cert or tls_client_ca."
        self._describe(name, "gauge", text, labels)
        self._expiry = _CertificateExpiry(f"glowserve_{name}", text, labels)
        self.registry.register(self._expiry)

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        self._describe(f"{name}_total", "counter", text, labels)
        return Counter(f"glowserve_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Sequence[str]) -> Gauge:
        self._describe(name, "gauge", text, labels)
        return Gauge(f"glowserve_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float]) -> Histogram:
        self._describe(name, "histogram", text, labels)
        histogram = Histogram(f"glowserve_{name}", text, labels, buckets)
        self.registry.register(histogram)
        return histogram

    def _describe(self, name: str, kind: str, text: str, labels: Sequence[str]) -> None:
        self.descriptions.append(Description(f"glowserve_{name}", kind, tuple(labels), text))


class _Registry(CollectorRegistry):
    """A registry that calls a function before it collects the metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.refresh: Callable[[], None] = lambda: None

    def collect(self) -> Iterable[Metric]:
        self.refresh()
        return super().collect()

    def restricted_registry(self, names: Iterable[str]) -> RestrictedRegistry:
        self.refresh()
        return super().restricted_registry(names)


class _DroppedLogLines(Collector):
    """The log's own count, read at every scrape: the log is the process's and older than any service in it."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text
        self.count: Callable[[], float] = logs.dropped_lines

    def collect(self) -> Iterable[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._text, value=self.count())


class _CertificateExpiry(Collector):
    """The present files' ends, which a file that is renewed changes; without certificates there are no series."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self.certificates: Certificates | None = None

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._text, labels=self._labels)
        for each in self.certificates.validity() if self.certificates else ():
            family.add_metric([each.setting], each.end)
        yield family
