"""What Prometheus scrapes. docs/operations.md lists it, and a test holds the two together.

Labels take few values: names of models that were found, methods, status codes, and words that stand here. A caller
cannot make a series.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

# A call may have a deadline of a minute; one of a small model takes two milliseconds.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# Its parts are shorter: a tensor is written in a tenth of a millisecond.
_STAGE_SECONDS = (0.0001, 0.00025, 0.0005, *_SECONDS[:-2])
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = self._counter(
            "requests",
            "Calls that ended; model is empty where none was found, or several.",
            ["method", "model", "code"],
        )
        self.request_seconds = self._histogram(
            "request_duration_seconds", "From a call's arrival to its end.", ["method"], _SECONDS
        )
        self.requests_in_flight = self._gauge(
            "requests_in_flight", "Calls that have arrived and not ended.", []
        )
        self.preparation_seconds = self._histogram(
            "preparation_seconds",
            "Reading a request, decoding its pictures, drawing noise and latents; of calls that ended well.",
            ["model", "method"],
            _STAGE_SECONDS,
        )
        self.queue_seconds = self._histogram(
            "queue_seconds",
            "How long a caller's images waited for the batch that they were in.",
            ["model", "direction"],
            _STAGE_SECONDS,
        )
        self.execution_seconds = self._histogram(
            "execution_seconds", "How long a batch ran.", ["model", "direction"], _STAGE_SECONDS
        )
        self.serialization_seconds = self._histogram(
            "serialization_seconds",
            "Writing pictures and responses; of calls that ended well.",
            ["model", "method"],
            _STAGE_SECONDS,
        )
        self.batches = self._counter(
            "batches",
            "Batches that were sent because they were full, a worker_free, or the delay over.",
            ["model", "direction", "reason"],
        )
        self.batch_size = self._histogram("batch_size", "Images in a batch.", ["model", "direction"], _ROWS)
        self.padding = self._counter(
            "padded_rows", "Rows of zeros that batches were padded with.", ["model", "direction"]
        )
        self.queue_length = self._gauge("queue_length", "Images that wait.", ["model", "direction"])
        self.dropped = self._counter(
            "dropped_images",
            "Images that did not run: queue_full, wait_too_long, stopping, cancelled, deadline.",
            ["model", "direction", "cause"],
        )
        self.not_finite = self._counter(
            "not_finite_images",
            "Images whose score, encoding or decoding was not finite.",
            ["model", "method"],
        )
        self.inexact_encodings = self._counter(
            "inexact_encodings", "Encoded images that do not decode to themselves.", ["model"]
        )
        self.ready = self._gauge("ready", "1 while calls are let in, else 0.", [])
        self.model_loads = self._counter(
            "model_loads", "Versions of models that were loaded, or refused.", ["model", "outcome"]
        )
        self.model_ready = self._gauge(
            "model_ready", "1 while a version works, 0 after its engine failed.", ["model", "version"]
        )
        self.canary_checks = self._counter(
            "canary_checks", "Canaries that were drawn and scored again, ok or failed.", ["model", "outcome"]
        )
        self.model_info = self._gauge(
            "model_info",
            "1 for each model that is served.",
            ["model", "version", "device", "provider", "precision"],
        )
        self.graph_nodes = self._gauge(
            "graph_nodes",
            "Nodes of a graph that an execution provider of ONNX Runtime runs.",
            ["model", "version", "graph", "provider"],
        )

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        return Counter(f"glowserve_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Sequence[str]) -> Gauge:
        return Gauge(f"glowserve_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float]) -> Histogram:
        return Histogram(f"glowserve_{name}", text, labels, buckets=buckets, registry=self.registry)
