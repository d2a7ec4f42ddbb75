"""OpenTelemetry spans of calls, sent to a collector if one is configured.

The environment variables are OpenTelemetry's own (specification, "OpenTelemetry Protocol Exporter"). Attributes are
named as in its semantic conventions for RPC.
"""

from __future__ import annotations

import importlib.metadata
import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from glowserve.credentials import proxy_options
from glowserve_service.errors import TracingError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
# A stopping service waits no longer than this for the collector.
_LAST_SPANS_SECONDS = 3.0
# Status codes that the conventions call errors of the server.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class CallSpan:
    """The span of a call."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        from opentelemetry import trace

        self._tracer, self._span = tracer, span
        self._context = trace.set_span_in_context(span)
        self.trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        """32 hexadecimal digits, as in W3C's traceparent."""

    def stage(self, name: str, seconds: float, ago: float) -> None:
        """Adds a child span that took `seconds` and ended `ago` seconds before now."""
        if self._span.is_recording():
            end = time.time_ns() - round(1e9 * ago)
            span = self._tracer.start_span(name, self._context, start_time=end - round(1e9 * seconds))
            span.end(end)

    def end(self, code: str, message: str, attributes: Mapping[str, Any]) -> None:
        """Ends the span.

        Args:
            code: the name of the status code that the caller gets.
            message: the status message, kept if the code is an error of the server.
            attributes: set under the prefix `glowserve.`.
        """
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute("rpc.response.status_code", code)
        self._span.set_attributes({f"glowserve.{name}": value for name, value in attributes.items()})
        if code in _FAULTS:
            self._span.set_status(Status(StatusCode.ERROR, message))
        self._span.end()


class Traces:
    """Spans for the calls of a service.

    Args:
        provider: exports the spans.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("glowserve", importlib.metadata.version("glowserve"))
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, metadata: Mapping[str, Any]) -> CallSpan:
        """Starts the span of a call; a child of the caller's span if `metadata` has W3C's traceparent.

        Args:
            method: PACKAGE.SERVICE/METHOD.
            metadata: what the caller sent.
        """
        from opentelemetry.trace import SpanKind

        context = self._propagator.extract(metadata)
        attributes = {"rpc.system.name": "grpc", "rpc.method": method}
        return CallSpan(
            self._tracer,
            self._tracer.start_span(method, context, kind=SpanKind.SERVER, attributes=attributes),
        )

    def close(self) -> None:
        """Sends the spans that are left; gives up after three seconds."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_LAST_SPANS_SECONDS)


def check_environment() -> str:
    """The variable that names the endpoint; "" if none does, or the SDK is disabled.

    Raises:
        TracingError: OpenTelemetry is not installed, or the variables ask for another protocol than gRPC.
    """
    endpoint = next((name for name in ENDPOINTS if os.environ.get(name)), "")
    if not endpoint or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return ""
    try:
        import opentelemetry.exporter.otlp.proto.grpc.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401
    except ImportError as error:
        raise TracingError(
            f"${endpoint} is set and OpenTelemetry is not installed; install glowserve[otel], or unset it"
        ) from error
    protocol = next((name for name in _PROTOCOLS if os.environ.get(name)), "")
    if protocol and os.environ[protocol] != "grpc":
        raise TracingError(
            f"${protocol} is {os.environ[protocol]!r}; traces can be sent by grpc only: set it to grpc"
        )
    return endpoint


def from_environment() -> Traces | None:
    """Traces as the environment configures them; None if it names no endpoint, or disables the SDK.

    Raises: see `check_environment`.
    """
    if not (endpoint := check_environment()):
        return None
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    own = {"service.name": "glowserve", "service.version": importlib.metadata.version("glowserve")}
    resource = Resource.create(own).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    collector = os.environ[endpoint].partition("://")[2] or os.environ[endpoint]
    options: Any = tuple(proxy_options(collector.partition("/")[0]))
    exporter = OTLPSpanExporter(channel_options=options)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Traces(provider)
