"""Writes dashboards/*.json for Grafana from the panels of panels.py: `make docs`.

    python deploy/grafana/make_dashboards.py [--check]

With --check no file is written, and the exit code is 1 if one is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh
from panels import DASHBOARDS, Panel

FOLDER = Path(__file__).parent / "dashboards"
DATA_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTHS = {"number": 4, "lines": 12, "heatmap": 12}
"""Of 24 columns."""


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
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus").label("data source"))
        .with_variable(choice("instance", "label_values(glowserve_ready, instance)"))
        .with_variable(choice("model", "label_values(glowserve_model_info, model)"))
    )
    for title, panels in rows.items():
        made = made.with_row(dashboard.Row(title))
        for panel in panels:
            made = made.with_panel(panel_of(panel))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def choice(name: str, query: str) -> dashboard.QueryVariable:
    """A variable of which the reader chooses several values; all at first."""
    variable = (
        dashboard.QueryVariable(name).datasource(DATA_SOURCE).query(query).multi(True).include_all(True)
    )
    return variable.all_value(".*").refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)


def panel_of(panel: Panel) -> timeseries.Panel | stat.Panel | heatmap.Panel:
    """A panel of its kind."""
    kinds = {"lines": timeseries.Panel, "number": stat.Panel, "heatmap": heatmap.Panel}
    made = (
        kinds[panel.kind]()
        .title(panel.title)
        .description(panel.text)
        .unit(panel.unit)
        .datasource(DATA_SOURCE)
    )
    made = made.span(WIDTHS[panel.kind]).height(4 if panel.kind == "number" else 8)
    if panel.kind == "heatmap":
        made = made.calculate(False)
    if panel.kind == "lines":
        made = made.min(0).fill_opacity(5)
        made = made.legend(
            common.VizLegendOptions().show_legend(True).placement("bottom").display_mode("list")
        )
    for reference, (expression, legend) in zip("ABCD", panel.series, strict=False):
        query = prometheus.Dataquery().ref_id(reference).expr(expression).legend_format(legend)
        made = made.with_target(query.format("heatmap") if panel.kind == "heatmap" else query)
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
