"""The dashboard `models`: which versions are served, whether they work, and what their images score."""

from __future__ import annotations

from panel import MODEL, Panel, lines, number, rate, share

VERSIONS = (
    number(
        "Versions",
        "Versions that are served.",
        "short",
        f"count(count by (model, version) (glowserve_model_ready{{{MODEL}}}))",
    ),
    number(
        "Versions that fail",
        "Instances of versions whose batches fail.",
        "short",
        f"count(glowserve_model_ready{{{MODEL}}} == 0)",
        limit=1,
    ),
    number(
        "Versions on the CPU in place of a GPU",
        "The alert GlowserveCpuFallback.",
        "short",
        f"sum(glowserve_cpu_fallback{{{MODEL}}})",
        limit=1,
    ),
    Panel(
        "Versions that are served",
        "Red while a version fails on an instance.",
        "short",
        (
            (
                f"min by (model, version, device, precision) (glowserve_model_ready{{{MODEL}}} "
                f"* on (instance, model, version) group_right () glowserve_model_info{{{MODEL}}})",
                "{{model}} {{version}}, {{device}} {{precision}}",
            ),
        ),
        "states",
    ),
    lines(
        "Loads",
        "Versions that a service has loaded or refused since it started. The log has the reason of a refusal.",
        "short",
        f"max by (model, outcome) (glowserve_model_loads_total{{{MODEL}}})",
        "{{model}} {{outcome}}",
    ),
    lines(
        "Canary checks in five minutes",
        "A failed one means that the model computes something else than when it was exported.",
        "short",
        f"sum by (model, outcome) (increase(glowserve_canary_checks_total{{{MODEL}}}[5m]))",
        "{{model}} {{outcome}}",
    ),
)


def heatmap(title: str, text: str, metric: str, labels: str) -> Panel:
    """The images of each bucket over time."""
    counts = f"sum by (le) (increase({metric}_bucket{{{labels}}}[$__rate_interval]))"
    return Panel(title, text, "short", ((counts, "{{le}}"),), "heatmap")


SCORES = (
    heatmap(
        "Bits/dim",
        "Scored images, by their bits/dim: lower is likelier. Choose one model above.",
        "glowserve_bits_per_dim",
        MODEL,
    ),
    # Ten buckets of one width, without the narrow ones below 0.1: so one colour means one density.
    heatmap(
        "Anomaly p-values",
        "Scored images, by tenths of the p-value: of one colour while images look like the calibration images. Calls "
        "that ask for no p-values are not counted.",
        "glowserve_anomaly_p_value",
        f'{MODEL}, le=~"0.[1-9]|1.0"',
    ),
    lines(
        "Share of anomalies",
        "Of the images with p-values, those of at most 0.01: one in a hundred while images look like the calibration "
        "images.",
        "percentunit",
        share(
            rate("glowserve_anomalies_total", "model, version", MODEL),
            rate("glowserve_anomaly_p_value_count", "model, version", MODEL),
        ),
        "{{model}} {{version}}",
        limit=0.01,
    ),
    Panel(
        "Evidence of drift",
        "docs/drift.md; the alert GlowserveTrafficChanged fires at a billion.",
        "sci",
        (
            (
                f"clamp_min(max by (model, version) (glowserve_drift_statistic{{{MODEL}}}), 1)",
                "{{model}} {{version}}",
            ),
        ),
        limit=1e9,
        logarithmic=True,
    ),
    lines(
        "Images without a finite result",
        "Images so far from the data that they leave the range of float32.",
        "suffix:images/s",
        rate("glowserve_not_finite_images_total", "model, method", MODEL),
        "{{model}} {{method}}",
    ),
)

ROWS: dict[str, tuple[Panel, ...]] = {"Versions": VERSIONS, "Scores": SCORES}
