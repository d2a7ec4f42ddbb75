"""Rewrites the parts of the documentation that are generated from the code: `make docs`.

    python docs/generate.py [--check]

A generated part is what stands between `<!-- NAME: written by make docs -->` and `<!-- end of NAME -->`. With --check
no page is written, and the exit code is 1 if one is stale.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from pathlib import Path

from glowserve_service.config import ServiceConfig, variable
from glowserve_service.observability.metrics import Metrics

from glowserve.scores import TABLE


def main(arguments: list[str]) -> int:
    """Rewrites the pages, or checks them."""
    check = arguments == ["--check"]
    if arguments and not check:
        raise SystemExit("usage: python docs/generate.py [--check]")
    stale = [page for page in sorted(Path(__file__).parent.glob("*.md")) if renewed(page) != page.read_text()]
    for page in stale:
        if check:
            print(f"docs/{page.name} is stale: run `make docs`")
        else:
            page.write_text(renewed(page))
    return 1 if check and stale else 0


def renewed(page: Path) -> str:
    """The text of a page with its generated parts renewed."""

    def part(found: re.Match[str]) -> str:
        return f"{found['begin']}\n\n{PARTS[found['name']]()}\n\n{found['end']}"

    return re.sub(
        r"(?P<begin><!-- (?P<name>\w+): written by make docs -->)\n.*?(?P<end><!-- end of (?P=name) -->)",
        part,
        page.read_text(),
        flags=re.DOTALL,
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


def default(value: object) -> str:
    """A default as a flag would set it; empty for None."""
    return "" if value is None else f"`{value}`"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


PARTS: dict[str, Callable[[], str]] = {"metrics": metrics, "scores": scores, "settings": settings}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
