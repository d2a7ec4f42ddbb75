"""Metrics of a server in this process, read from its registry."""

from __future__ import annotations

from glowserve_service.server import Server

from tests.servers import FRONTENDS


def value(server: Server, name: str, **labels: str) -> float:
    """A sample of the metric glowserve_NAME; 0 if there is no such series."""
    return server.metrics.registry.get_sample_value(f"glowserve_{name}", labels) or 0.0


def has_series(server: Server, name: str, **labels: str) -> bool:
    """Whether there is a series with these labels."""
    return server.metrics.registry.get_sample_value(f"glowserve_{name}", labels) is not None


def queue_length(server: Server, direction: str = "forward") -> float:
    """Images of the model `digits` that wait in a queue."""
    return value(server, "queue_length", model="digits", direction=direction)


def leases(server: Server) -> int:
    """Calls that use the model `digits`. Each of several front-ends keeps it open as well."""
    model = server.manager._models.find("digits", 0)
    return model._leases - (FRONTENDS if FRONTENDS > 1 else 0)


def in_flight(server: Server) -> float:
    """Calls that have begun and are not counted as ended."""
    return value(server, "requests_in_flight")


def ended(server: Server, method: str, code: str, model: str = "digits") -> float:
    """Calls of a method that have ended with a status."""
    return value(server, "requests_total", method=method, model=model, code=code)
