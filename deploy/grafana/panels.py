"""The panels of the dashboards: which expressions are shown, under which titles and in which units.

`$instance` and `$model` are the reader's choices at the top of a dashboard. docs/operations.md explains the metrics.
"""

from __future__ import annotations

from typing import NamedTuple


class Panel(NamedTuple):
    """One panel."""

    title: str
    text: str
    """What to read from it."""
    unit: str
    """As Grafana calls it: s, reqps, percentunit, ..."""
    series: tuple[tuple[str, str], ...]
    """Expressions and their legends; a panel of kind "heatmap" has one expression, by `le`."""
    kind: str = "lines"
    """lines, number or heatmap."""


ALL = 'instance=~"$instance"'
MODEL = 'instance=~"$instance", model=~"$model"'


def rate(metric: str, by: str, labels: str) -> str:
    """The rate of a counter, summed by labels."""
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))"


def quantile(q: float, metric: str, by: str, labels: str) -> str:
    """A quantile of a histogram, by labels."""
    buckets = rate(f"{metric}_bucket", ", ".join(filter(None, ("le", by))), labels)
    return f"histogram_quantile({q}, {buckets})"


def share(part: str, whole: str) -> str:
    """A share that is empty, and not NaN, where there is nothing."""
    return f"{part} / ({whole} > 0)"


_CALLS = "glowserve_requests_total"

TRAFFIC = (
    Panel(
        "Ready",
        "Services that accept calls.",
        "short",
        ((f"sum(glowserve_ready{{{ALL}}})", "ready"),),
        "number",
    ),
    Panel(
        "Calls in flight",
        "Unfinished calls.",
        "short",
        ((f"sum(glowserve_requests_in_flight{{{ALL}}})", "calls"),),
        "number",
    ),
    Panel(
        "Alerts",
        "Alerts that fire: docs/runbook.md.",
        "short",
        (('count(ALERTS{alertstate="firing"}) or vector(0)', "alerts"),),
        "number",
    ),
    Panel(
        "Calls by method", "Finished calls a second.", "reqps", ((rate(_CALLS, "method", ALL), "{{method}}"),)
    ),
    Panel(
        "Calls that were not answered, by status",
        "RESOURCE_EXHAUSTED: too little capacity. INTERNAL: the log has a traceback. docs/errors.md has the others.",
        "reqps",
        ((rate(_CALLS, "code", f'{ALL}, code!="OK"'), "{{code}}"),),
    ),
)

LATENCY = (
    Panel(
        "Duration of calls",
        "From the arrival of a call to its end.",
        "s",
        tuple(
            (quantile(q, "glowserve_request_duration_seconds", "method", ALL), f"p{100 * q:g} {{{{method}}}}")
            for q in (0.5, 0.99)
        ),
    ),
    Panel(
        "Scores that end within a second",
        "The objective of the alert GlowserveSlow is 99 %.",
        "percentunit",
        (
            (
                share(
                    rate(
                        "glowserve_request_duration_seconds_bucket",
                        "instance",
                        f'{ALL}, method=~"Score|ModelInfer", le="1.0"',
                    ),
                    rate(
                        "glowserve_request_duration_seconds_count",
                        "instance",
                        f'{ALL}, method=~"Score|ModelInfer"',
                    ),
                ),
                "{{instance}}",
            ),
        ),
    ),
    *(
        Panel(
            title,
            text,
            "s",
            tuple(
                (quantile(q, metric, by, MODEL), f"p{100 * q:g} {{{{model}}}} {{{{{by.split(', ')[1]}}}}}")
                for q in (0.5, 0.99)
            ),
        )
        for title, text, metric, by in (
            (
                "Preparation",
                "Parsing, decoding of pictures, noise.",
                "glowserve_preparation_seconds",
                "model, method",
            ),
            (
                "Queue",
                "Waiting for a worker: it grows when there is too little capacity.",
                "glowserve_queue_seconds",
                "model, direction",
            ),
            ("Execution", "ONNX Runtime, a batch.", "glowserve_execution_seconds", "model, direction"),
            (
                "Serialization",
                "Encoding of images and responses.",
                "glowserve_serialization_seconds",
                "model, method",
            ),
        )
    ),
)

_PADDED = rate("glowserve_padded_rows_total", "model, direction", MODEL)
_ROWS = rate("glowserve_batch_size_sum", "model, direction", MODEL)

BATCHES = (
    Panel(
        "Images a batch",
        "Large batches cost less an image; docs/sizing.md.",
        "short",
        (
            (
                share(
                    _ROWS,
                    rate("glowserve_batch_size_count", "model, direction", MODEL),
                ),
                "{{model}} {{direction}}",
            ),
        ),
    ),
    Panel(
        "Batches by reason",
        "full: at the largest size. worker_free: a worker was idle.",
        "ops",
        ((rate("glowserve_batches_total", "reason", MODEL), "{{reason}}"),),
    ),
    Panel(
        "Padding",
        "The share of rows that are zeros, of all rows that ran. It is 0 on the CPU.",
        "percentunit",
        (
            (
                share(_PADDED, f"{_PADDED} + {_ROWS}"),
                "{{model}} {{direction}}",
            ),
        ),
    ),
)

SATURATION = (
    Panel(
        "Busy workers",
        "Seconds of ONNX Runtime a second.",
        "short",
        ((rate("glowserve_execution_seconds_sum", "instance", MODEL), "{{instance}}"),),
    ),
    Panel(
        "Images in queues",
        "At --max-queue-size, further ones are refused.",
        "short",
        ((f"sum by (model, direction) (glowserve_queue_length{{{MODEL}}})", "{{model}} {{direction}}"),),
    ),
    Panel(
        "Images that left a queue without running",
        "By cause: docs/operations.md.",
        "ops",
        ((rate("glowserve_dropped_images_total", "cause", MODEL), "{{cause}}"),),
    ),
    Panel(
        "Bytes of requests",
        "Received and not answered; the limit is --max-received-mib.",
        "bytes",
        ((f"glowserve_received_bytes{{{ALL}}}", "{{instance}}"),),
    ),
)

PROCESS = (
    Panel(
        "Processor",
        "Cores that are busy.",
        "short",
        ((f'rate(process_cpu_seconds_total{{{ALL}, job="glowserve"}}[$__rate_interval])', "{{instance}}"),),
    ),
    Panel(
        "Memory",
        "Of the service's process; decoders have their own.",
        "bytes",
        ((f'process_resident_memory_bytes{{{ALL}, job="glowserve"}}', "{{instance}}"),),
    ),
    Panel(
        "Open files",
        "Of the limit. Above the line, connections are refused.",
        "percentunit",
        (
            (
                f'process_open_fds{{{ALL}, job="glowserve"}} / process_max_fds{{{ALL}, job="glowserve"}}',
                "{{instance}}",
            ),
        ),
    ),
    Panel(
        "Log lines that were dropped",
        "Nobody reads standard error fast enough.",
        "ops",
        ((rate("glowserve_dropped_log_lines_total", "instance", ALL), "{{instance}}"),),
    ),
)

VERSIONS = (
    Panel(
        "Versions that are served",
        "1 works, 0 fails.",
        "short",
        (
            (
                f"min by (model, version, device, precision) (glowserve_model_ready{{{MODEL}}} "
                f"* on (instance, model, version) group_right () glowserve_model_info{{{MODEL}}})",
                "{{model}} {{version}} {{device}} {{precision}}",
            ),
        ),
    ),
    Panel(
        "Loads",
        "Refused versions have their reason in the log.",
        "ops",
        ((rate("glowserve_model_loads_total", "model, outcome", MODEL), "{{model}} {{outcome}}"),),
    ),
    Panel(
        "Canary checks",
        "A failed one means that the model computes something else.",
        "ops",
        ((rate("glowserve_canary_checks_total", "model, outcome", MODEL), "{{model}} {{outcome}}"),),
    ),
    Panel(
        "Versions on the CPU that should be on a GPU",
        "The alert GlowserveCpuFallback.",
        "short",
        ((f"sum by (model, version) (glowserve_cpu_fallback{{{MODEL}}})", "{{model}} {{version}}"),),
    ),
)

SCORES = (
    Panel(
        "Bits/dim",
        "Of the scored images: lower is likelier.",
        "short",
        ((f"sum by (le) (increase(glowserve_bits_per_dim_bucket{{{MODEL}}}[$__rate_interval]))", "{{le}}"),),
        "heatmap",
    ),
    Panel(
        "Anomaly p-values",
        "Flat while images look like the calibration images.",
        "short",
        (
            (
                f"sum by (le) (increase(glowserve_anomaly_p_value_bucket{{{MODEL}}}[$__rate_interval]))",
                "{{le}}",
            ),
        ),
        "heatmap",
    ),
    Panel(
        "Share of anomalies",
        "Images with a p-value of at most 0.01: one in a hundred while images look like the calibration images.",
        "percentunit",
        (
            (
                share(
                    rate("glowserve_anomalies_total", "model, version", MODEL),
                    rate("glowserve_anomaly_p_value_count", "model, version", MODEL),
                ),
                "{{model}} {{version}}",
            ),
        ),
    ),
    Panel(
        "Evidence of drift",
        "docs/drift.md; the alert fires at a billion.",
        "short",
        ((f"max by (model, version) (glowserve_drift_statistic{{{MODEL}}})", "{{model}} {{version}}"),),
    ),
    Panel(
        "Images without a finite result",
        "Images so far from the data that they leave the range of float32.",
        "ops",
        ((rate("glowserve_not_finite_images_total", "model, method", MODEL), "{{model}} {{method}}"),),
    ),
)

DASHBOARDS = {
    "service": {
        "Traffic": TRAFFIC,
        "Latency": LATENCY,
        "Batches": BATCHES,
        "Saturation": SATURATION,
        "Process": PROCESS,
    },
    "models": {"Versions": VERSIONS, "Scores": SCORES},
}
