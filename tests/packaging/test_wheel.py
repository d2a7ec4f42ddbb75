"""The way from the source to a user: what the wheel installs. It is built as pip builds it, without a download."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "glowserve": ROOT / "glowserve",
    "glowserve_training": ROOT / "training" / "glowserve_training",
    "glowserve_export": ROOT / "export" / "glowserve_export",
    "glowserve_service": ROOT / "service" / "glowserve_service",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--disable-pip-version-check", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path) -> set[str]:
    """The paths of the files that the wheel installs, below site-packages."""
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_installs_our_four_packages_and_no_other_name(wheel: Path, installed: set[str]) -> None:
    name, version, *_ = wheel.name.split("-")
    assert {path.split("/")[0] for path in installed} == {*PACKAGES, f"{name}-{version}.dist-info"}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_wheel_has_every_file_of_a_package(package: str, installed: set[str]) -> None:
    source = PACKAGES[package]
    files = {
        f"{package}/{path.relative_to(source).as_posix()}"
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path for path in installed if path.startswith(f"{package}/")} == files
    assert f"{package}/py.typed" in files


def test_the_wheel_has_a_stub_for_each_generated_module(installed: set[str]) -> None:
    generated = {path for path in installed if path.endswith("_pb2.py")}
    assert {path.split("/")[1] for path in generated} == {"v1", "oip"}
    assert {f"{path}i" for path in generated} <= installed


def test_the_wheel_has_the_console_script(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
        assert archive.read(path).decode().split("\n")[:2] == [
            "[console_scripts]",
            "glowserve = glowserve.cli:main",
        ]
