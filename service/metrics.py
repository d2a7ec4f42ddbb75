"""What Prometheus scrapes."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "glowserve_requests", "Finished calls.", ["method", "code"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "glowserve_request_duration_seconds",
            "From a call's arrival to its end.",
            ["method"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.requests_in_flight = Gauge(
            "glowserve_requests_in_flight", "Calls that have arrived and not ended.", registry=self.registry
        )
        self.batch_size = Histogram(
            "glowserve_batch_size",
            "Images in a batch.",
            ["model", "direction"],
            buckets=_ROWS,
            registry=self.registry,
        )
        self.queue_length = Gauge(
            "glowserve_queue_length", "Images that wait.", ["model", "direction"], registry=self.registry
        )
        self.not_finite = Counter(
            "glowserve_not_finite_images",
            "Images whose score, encoding or decoding was not finite.",
            ["model", "method"],
            registry=self.registry,
        )
        self.inexact_encodings = Counter(
            "glowserve_inexact_encodings",
            "Encoded images that do not decode to themselves.",
            ["model"],
            registry=self.registry,
        )
        self.model_info = Gauge(
            "glowserve_model_info",
            "1 for each model that is served.",
            ["model", "version", "device"],
            registry=self.registry,
        )
