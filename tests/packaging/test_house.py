"""CONTRIBUTING.md's diagrams are the imports, and files stay short."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("glowserve", "glowserve_training", "glowserve_export", "glowserve_service")
# What everybody may use: files directly in glowserve/, the generated contract; the service's settings and errors.
SHARED = ""
MOST_LINES = 400


def _diagrams() -> list[set[tuple[str, str]]]:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)
    return [set(re.findall(r"(\w+) --> (\w+)", block)) for block in blocks]


def _package_room(module: str) -> str:
    package, *rest = module.split(".")
    if package != "glowserve":
        return package.removeprefix("glowserve_")
    return rest[0] if rest and rest[0] in ("cli", "demo", "ui", "client", "runtime") else SHARED


def _service_room(module: str) -> str:
    package, *rest = module.split(".")
    if (
        package != "glowserve_service"
        or not rest
        or rest[0] in ("config", "environment", "errors", "versions")
    ):
        return SHARED
    return rest[0]


@pytest.fixture(scope="module")
def imports() -> set[tuple[str, str]]:
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True)
    return {
        (module, imported)
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
    }


@pytest.mark.parametrize(("diagram", "room"), [(0, _package_room), (1, _service_room)])
def test_the_diagrams_in_contributing_are_the_imports(
    imports: set[tuple[str, str]], diagram: int, room: object
) -> None:
    assert callable(room)
    arrows = {(room(module), room(imported)) for module, imported in imports}
    expected = {(start, end) for start, end in arrows if start != end and SHARED not in (start, end)}
    assert _diagrams()[diagram] == expected


def test_no_file_is_longer_than_400_lines() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in listed if (ROOT / name).exists()}
    generated = ("glowserve/v1/", "glowserve/oip/")
    long = {name: n for name, n in lengths.items() if n > MOST_LINES and not name.startswith(generated)}
    assert not long
