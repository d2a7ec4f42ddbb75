"""The dashboard `service`: what arrives, how long it takes, and what limits it."""

from __future__ import annotations

from panel import ALL, MODEL, Panel, lines, number, quantile, rate, share

_CALLS = "glowserve_requests_total"
_SCORES = f'{ALL}, method=~"Score|ModelInfer"'
_SECONDS = "glowserve_request_duration_seconds"
_UP = f'up{{{ALL}, job="glowserve"}}'

TRAFFIC = (
    number("Ready", "Services that accept calls.", "short", f"sum(glowserve_ready{{{ALL}}})"),
    number(
        "Not ready",
        "Services that accept no calls, or cannot be scraped.",
        "short",
        f"count({_UP} == 0 or glowserve_ready{{{ALL}}} == 0)",
        limit=1,
    ),
    number("Calls a second", "Finished calls.", "reqps", f"sum(rate({_CALLS}{{{MODEL}}}[$__rate_interval]))"),
    number(
        "Calls that were not answered",
        "The share of calls that ended with another status than OK.",
        "percentunit",
        share(
            f'sum(rate({_CALLS}{{{MODEL}, code!="OK"}}[$__rate_interval]))',
            f"sum(rate({_CALLS}{{{MODEL}}}[$__rate_interval]))",
        ),
        limit=0.05,
    ),
    number(
        "Scores, 99th percentile",
        "The time that one call for scores in a hundred exceeds.",
        "s",
        f"{quantile(0.99, _SECONDS, '', _SCORES)} >= 0",
        limit=1,
    ),
    number(
        "Alerts",
        "Alerts that fire. Prometheus names them on its page /alerts; docs/runbook.md has a section for each.",
        "short",
        'count(ALERTS{alertname=~"Glowserve.*", alertstate="firing"})',
        limit=1,
    ),
    lines("Calls by method", "Finished calls.", "reqps", rate(_CALLS, "method", MODEL), "{{method}}"),
    lines(
        "Calls that were not answered, by status",
        "RESOURCE_EXHAUSTED: too little capacity. INTERNAL: the log has a traceback. docs/errors.md has the others.",
        "reqps",
        rate(_CALLS, "code", f'{MODEL}, code!="OK"'),
        "{{code}}",
    ),
)

LATENCY = (
    *(
        lines(
            f"Duration of calls, {name}",
            "From the arrival of a call to its end, of all models.",
            "s",
            quantile(q, _SECONDS, "method", ALL),
            "{{method}}",
        )
        for name, q in (("median", 0.5), ("99th percentile", 0.99))
    ),
    lines(
        "Scores that take longer than a second",
        "Of all calls for scores. The objective is one in a hundred at most; the alert GlowserveSlow fires at 14.4.",
        "percentunit",
        "1 - "
        + share(
            rate(f"{_SECONDS}_bucket", "instance", f'{_SCORES}, le="1.0"'),
            rate(f"{_SECONDS}_count", "instance", _SCORES),
        ),
        "{{instance}}",
        limit=0.01,
    ),
    *(
        lines(
            f"{stage}, 99th percentile",
            text,
            "s",
            quantile(0.99, f"glowserve_{stage.lower()}_seconds", by, MODEL),
            legend,
        )
        for stage, text, by, legend in (
            ("Preparation", "Parsing, decoding of pictures, noise.", "method", "{{method}}"),
            (
                "Queue",
                "Waiting for a worker: it grows when there is too little capacity.",
                "model, direction",
                "{{model}} {{direction}}",
            ),
            ("Execution", "ONNX Runtime, a batch.", "model, direction", "{{model}} {{direction}}"),
            ("Serialization", "Encoding of images and responses.", "method", "{{method}}"),
        )
    ),
)

_PADDED = rate("glowserve_padded_rows_total", "model, direction", MODEL)
_ROWS = rate("glowserve_batch_size_sum", "model, direction", MODEL)

BATCHES = (
    lines("Images a second", "Images that ran.", "suffix:images/s", _ROWS, "{{model}} {{direction}}"),
    lines(
        "Images a batch",
        "Large batches cost less an image; docs/sizing.md.",
        "short",
        share(_ROWS, rate("glowserve_batch_size_count", "model, direction", MODEL)),
        "{{model}} {{direction}}",
    ),
    lines(
        "Batches by reason",
        "full: at the largest size. worker_free: a worker was idle. delay: an image has waited for "
        "--max-queue-delay-ms.",
        "ops",
        rate("glowserve_batches_total", "reason", MODEL),
        "{{reason}}",
    ),
    lines(
        "Padding",
        "The share of rows that are zeros, of all rows that ran. It is 0 on the CPU.",
        "percentunit",
        share(_PADDED, f"{_PADDED} + {_ROWS}"),
        "{{model}} {{direction}}",
    ),
)

SATURATION = (
    lines(
        "Busy workers",
        "Seconds of ONNX Runtime a second. At the number of cores, the machine is full.",
        "short",
        rate("glowserve_execution_seconds_sum", "instance", MODEL),
        "{{instance}}",
    ),
    lines(
        "Images in queues",
        "At --max-queue-size, further ones are refused.",
        "short",
        f"sum by (model, direction) (glowserve_queue_length{{{MODEL}}})",
        "{{model}} {{direction}}",
    ),
    lines(
        "Images that left a queue without running",
        "By cause: docs/operations.md.",
        "suffix:images/s",
        rate("glowserve_dropped_images_total", "cause", MODEL),
        "{{cause}}",
    ),
    lines(
        "Calls in flight",
        "Unfinished calls; the limit is --max-concurrent-calls.",
        "short",
        f"glowserve_requests_in_flight{{{ALL}}}",
        "{{instance}}",
    ),
    lines(
        "Bytes of requests",
        "Received and not answered; the limit is --max-received-mib.",
        "bytes",
        f"glowserve_received_bytes{{{ALL}}}",
        "{{instance}}",
    ),
)

PROCESS = (
    lines(
        "Processor",
        "Cores that are busy.",
        "short",
        f'rate(process_cpu_seconds_total{{{ALL}, job="glowserve"}}[$__rate_interval])',
        "{{instance}}",
    ),
    lines(
        "Memory",
        "Of the service's process; decoders have their own.",
        "bytes",
        f'process_resident_memory_bytes{{{ALL}, job="glowserve"}}',
        "{{instance}}",
    ),
    lines(
        "Open files",
        "Of the limit. The alert GlowserveDescriptorsShort says when connections may be refused.",
        "percentunit",
        f'process_open_fds{{{ALL}, job="glowserve"}} / process_max_fds{{{ALL}, job="glowserve"}}',
        "{{instance}}",
    ),
    lines(
        "Log lines that were dropped",
        "Nobody reads standard error fast enough.",
        "ops",
        rate("glowserve_dropped_log_lines_total", "instance", ALL),
        "{{instance}}",
    ),
)

ROWS: dict[str, tuple[Panel, ...]] = {
    "Traffic": TRAFFIC,
    "Latency": LATENCY,
    "Batches": BATCHES,
    "Saturation": SATURATION,
    "Process": PROCESS,
}
