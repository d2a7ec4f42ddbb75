"""The expressions of the dashboards and of the alert rules, as Prometheus is asked them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
RULES = DEPLOY / "prometheus" / "rules.yml"


def panels() -> list[dict[str, Any]]:
    """The panels of all dashboards that show something."""
    found = [panel for path in DASHBOARDS for panel in json.loads(path.read_text())["panels"]]
    return [panel for panel in found if panel["type"] != "row"]


def alerts() -> list[dict[str, Any]]:
    """The alert rules."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def dashboard_expressions(interval: str) -> dict[str, str]:
    """The expressions of the dashboards, by panel, with every instance and model chosen.

    Args:
        interval: in place of Grafana's `$__rate_interval`.
    """
    values = {"$instance": ".*", "$model": ".*", "$__rate_interval": interval}
    return {
        f"{panel['title']} {target['refId']}": re.sub(
            r"\$\w+", lambda found: values[found[0]], target["expr"]
        )
        for panel in panels()
        for target in panel["targets"]
    }


def rule_expressions() -> dict[str, str]:
    """The expressions of the rules, by alert. Comparisons give 0 or 1, and not nothing while all is well."""
    return {
        rule["alert"]: re.sub(r"(?<![=!])(==|>=|<=|>|<) ", r"\1 bool ", rule["expr"]) for rule in alerts()
    }
