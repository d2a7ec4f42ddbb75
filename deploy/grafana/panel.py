"""A panel of a dashboard, and the expressions that panels are made of.

`$instance` and `$model` are the reader's choices at the top of a dashboard. docs/operations.md explains the metrics.
"""

from __future__ import annotations

from typing import NamedTuple

ALL = 'instance=~"$instance"'
MODEL = 'instance=~"$instance", model=~"$model"'


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
    """lines, number, heatmap, or states, whose values are 1 while all is well and else 0."""
    limit: float | None = None
    """From here on numbers are red; lines have a red line there."""
    logarithmic: bool = False
    """Whether the axis is. Such an axis begins at 1."""


def lines(
    title: str, text: str, unit: str, expression: str, legend: str, limit: float | None = None
) -> Panel:
    """A panel of one expression."""
    return Panel(title, text, unit, ((expression, legend),), limit=limit)


def number(title: str, text: str, unit: str, expression: str, limit: float | None = None) -> Panel:
    """A panel of one number, which is 0 where its expression has no series."""
    return Panel(title, text, unit, ((f"{expression} or vector(0)", ""),), "number", limit)


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
