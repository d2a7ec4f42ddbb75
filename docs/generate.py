"""Rewrites the parts of documentation and deployment that are generated from the code: `make docs`.

    python docs/generate.py [--check]

A generated part is what stands between the comments `NAME: written by make docs` and `end of NAME`, of Markdown or of
YAML. With --check no page is written, and the exit code is 1 if one is stale.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from textwrap import indent
from typing import Any

from glowserve_service.config import ServiceConfig, variable
from glowserve_service.observability.metrics import Metrics

from glowserve.scores import TABLE


def main(arguments: list[str]) -> int:
    """Rewrites the pages, or checks them."""
    check = arguments == ["--check"]
    if arguments and not check:
        raise SystemExit("usage: python docs/generate.py [--check]")
    stale = [page for page in PAGES if renewed(page) != page.read_text()]
    for page in stale:
        if check:
            print(f"{page.relative_to(ROOT)} is stale: run `make docs`")
        else:
            page.write_text(renewed(page))
    return 1 if check and stale else 0


def renewed(page: Path) -> str:
    """The text of a page with its generated parts renewed."""
    gap = "\n\n" if page.suffix == ".md" else "\n"

    def part(found: re.Match[str]) -> str:
        return f"{found['begin']}{gap}{PARTS[found['name']]()}{gap}{found['end']}"

    begin, end = (
        r"^ *(?:<!--|#) (?P<name>\w+): written by make docs(?: -->)?",
        r" *(?:<!--|#) end of (?P=name)\b",
    )
    return re.sub(
        rf"(?P<begin>{begin})\n.*?(?P<end>{end})", part, page.read_text(), flags=re.DOTALL | re.MULTILINE
    )


def metrics() -> str:
    """The metrics of a service, without those of the process and of Python."""
    return table(
        ("metric", "type", "labels", "meaning"),
        (
            (f"`{metric.name}`", metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.text)
            for metric in Metrics().descriptions
        ),
    )


def scores() -> str:
    """The table of scores."""
    return table(
        ("score", "meaning", "values", "computed from", "calibrated"),
        (
            (
                f"`{score.name}`" + (" *" if score.default else ""),
                score.meaning,
                score.values,
                score.source,
                "yes" if score.calibrated else "",
            )
            for score in TABLE.values()
        ),
    )


def settings() -> str:
    """The flags of `glowserve serve`, with their variables and defaults."""
    return table(
        ("flag", "variable", "default", "meaning"),
        (
            (
                f"`--{setting.name.replace('_', '-')}`",
                f"`{variable(setting)}`",
                "required" if setting.default is MISSING else default(setting.default),
                setting.metadata["help"],
            )
            for setting in fields(ServiceConfig)
        ),
    )


def deployed_settings() -> Iterator[Field[Any]]:
    """The settings that a deployment passes on: all but those that the image sets for the inside of its container."""
    return (setting for setting in fields(ServiceConfig) if setting.name not in IN_THE_IMAGE)


def variables() -> str:
    """The variables of the settings, as docker-compose.yml passes them on.

    Compose 1.29 unsets a variable that is nowhere given, so those that the image sets have values here, too.
    """
    lines = []
    for setting in deployed_settings():
        name, value = variable(setting), in_the_image(setting)
        lines.append(f"      - {name}" if value is None else f"      - {name}=${{{name}:-{value}}}")
    return "\n".join(lines)


def examples() -> str:
    """The variables of the settings with their defaults and meanings, commented out, as in .env.example."""
    return "\n".join(
        f"# {setting.metadata['help']}\n#{variable(setting)}={in_the_image(setting) or setting.default}"
        for setting in deployed_settings()
        if setting.name not in IN_COMPOSE
    )


def rules() -> str:
    """The alert rules, as the Prometheus operator reads them."""
    text = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text()
    return indent(text[text.index("groups:") :].rstrip(), "  ")


def in_the_image(setting: Field[Any]) -> str | None:
    """The value of a setting's variable in the images; None if they have none."""
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    found = re.search(rf"^ +{variable(setting)}=(\S+)", dockerfile, re.MULTILINE)
    return found[1] if found else None


def default(value: object) -> str:
    """A default as a flag would set it; empty for None."""
    return "" if value is None else f"`{value}`"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "docker-compose.yml",
    ROOT / ".env.example",
    ROOT / "deploy" / "kubernetes" / "base" / "rules.yaml",
]
IN_THE_IMAGE = ("repository", "host", "port", "metrics_port")
"""What the Dockerfile sets, and the probes and published ports rely on."""
IN_COMPOSE = ("tls_cert", "tls_key", "tls_client_ca", "tokens")
"""What .env.example shows with the paths of the containers."""
PARTS: dict[str, Callable[[], str]] = {
    "examples": examples,
    "metrics": metrics,
    "rules": rules,
    "scores": scores,
    "settings": settings,
    "variables": variables,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
