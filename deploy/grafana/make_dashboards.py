"""Writes dashboards/*.json for Grafana from the panels of service_dashboard.py and models_dashboard.py: `make docs`.

    python deploy/grafana/make_dashboards.py [--check]

With --check no file is written, and the exit code is 1 if one is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import models_dashboard
import service_dashboard
from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from panel import Panel

DASHBOARDS = {"service": service_dashboard.ROWS, "models": models_dashboard.ROWS}
FOLDER = Path(__file__).parent / "dashboards"
DATA_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
COLUMNS = 24
AnyPanel = timeseries.Panel | stat.Panel | heatmap.Panel | statetimeline.Panel


def main(arguments: Sequence[str]) -> int:
    """Writes the dashboards, or checks them."""
    stale = 0
    for name, rows in DASHBOARDS.items():
        path, text = FOLDER / f"{name}.json", as_json(name, rows)
        if "--check" not in arguments:
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            print(f"{path} is stale: run `make docs`")
            stale = 1
    return stale


def as_json(name: str, rows: Mapping[str, Sequence[Panel]]) -> str:
    """A dashboard as Grafana reads it."""
    made = (
        dashboard.Dashboard(f"glowserve: {name}")
        .uid(f"glowserve-{name}")
        .tags(["glowserve"])
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus").label("data source"))
        .with_variable(choice("instance", "label_values(glowserve_ready, instance)"))
        .with_variable(choice("model", "label_values(glowserve_model_info, model)"))
    )
    for title, panels in rows.items():
        made = made.with_row(dashboard.Row(title))
        numbers = sum(panel.kind == "number" for panel in panels)
        for panel in panels:
            # Numbers share a line; of the others there are two a line.
            columns, height = (COLUMNS // numbers, 4) if panel.kind == "number" else (COLUMNS // 2, 8)
            made = made.with_panel(panel_of(panel).span(columns).height(height))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def choice(name: str, query: str) -> dashboard.QueryVariable:
    """A variable of which the reader chooses several values; all at first."""
    variable = (
        dashboard.QueryVariable(name).datasource(DATA_SOURCE).query(query).multi(True).include_all(True)
    )
    return variable.all_value(".*").refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)


def panel_of(panel: Panel) -> AnyPanel:
    """A panel of its kind."""
    made = KINDS[panel.kind](panel).title(panel.title).description(panel.text)
    made = made.unit(panel.unit).datasource(DATA_SOURCE)
    for reference, (expression, legend) in zip("ABCD", panel.series, strict=False):
        query = prometheus.Dataquery().ref_id(reference).expr(expression).legend_format(legend)
        made = made.with_target(query.format(PromQueryFormat.HEATMAP) if panel.kind == "heatmap" else query)
    return made


def lines(panel: Panel) -> timeseries.Panel:
    """Lines over time, with a legend that has their last and their largest values."""
    legend = (
        common.VizLegendOptions()
        .show_legend(True)
        .placement(LegendPlacement.RIGHT)
        .display_mode(LegendDisplayMode.TABLE)
    )
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
    made = timeseries.Panel().min(0).fill_opacity(5)
    made = made.legend(legend.calcs(["lastNotNull", "max"])).tooltip(tooltip)
    if panel.limit is not None:
        style = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        made = made.thresholds(colours("transparent", (panel.limit, "red"))).thresholds_style(style)
        made = made.axis_soft_max(panel.limit)
    if panel.logarithmic:
        scale = common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10)
        made = made.min(1).scale_distribution(scale)
    return made


def number(panel: Panel) -> stat.Panel:
    """The last value, red from the limit on."""
    limits = [] if panel.limit is None else [(panel.limit, "red")]
    last = common.ReduceDataOptions().calcs(["lastNotNull"])
    return stat.Panel().reduce_options(last).thresholds(colours("green", *limits))


def buckets(panel: Panel) -> heatmap.Panel:
    """A histogram over time, whose buckets Prometheus counts."""
    cells = heatmap.CellValues().unit(panel.unit).decimals(0)
    return heatmap.Panel().calculate(False).cell_values(cells)


def states(_: Panel) -> statetimeline.Panel:
    """A bar for each series, green while its value is 1 and red while it is 0."""
    words = {"0": ValueMappingResult("fails", "red"), "1": ValueMappingResult("works", "green")}
    made = statetimeline.Panel().mappings([ValueMap(words)])
    return made.thresholds(colours("red", (1, "green")))


KINDS: dict[str, Callable[[Panel], AnyPanel]] = {
    "lines": lines,
    "number": number,
    "heatmap": buckets,
    "states": states,
}


def colours(first: str, *others: tuple[float, str]) -> dashboard.ThresholdsConfig:
    """A colour for all values, and others from a value on."""
    steps = [Threshold(None, first), *(Threshold(value, colour) for value, colour in others)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
