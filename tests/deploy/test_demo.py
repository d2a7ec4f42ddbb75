"""The program of compose's profile `demo`, but for the training."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.dashboards import DEPLOY

DEMO = DEPLOY / "demo.py"


@pytest.fixture
def demo() -> dict[str, Any]:
    return runpy.run_path(str(DEMO))


def test_a_model_that_is_there_is_not_trained_again(tmp_path: Path) -> None:
    (tmp_path / "digits" / "3").mkdir(parents=True)
    (tmp_path / "digits" / "3" / "manifest.json").touch()
    done = subprocess.run(
        [sys.executable, str(DEMO), str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "has a version already; remove that folder to train again" in done.stdout


def test_the_program_goes_on_as_the_owner_of_the_folder(
    demo: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order that leaves no right of root's behind: groups, group, user."""
    done = []
    for name in ("setgroups", "setgid", "setuid"):
        monkeypatch.setattr(os, name, lambda number, name=name: done.append((name, number)))
    monkeypatch.setattr(os, "getuid", lambda: 0)
    owner = os.stat_result((0o40755, 0, 0, 2, 1234, 567, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda _: owner)
    demo["become_owner"](tmp_path)
    assert done == [("setgroups", []), ("setgid", 567), ("setuid", 1234)]


def test_a_command_that_fails_ends_the_program_with_its_code(
    demo: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command[3:5])
        return subprocess.CompletedProcess(command, 3 if "export" in command else 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(os, "getuid", lambda: 1)
    assert demo["main"](tmp_path) == 3
    assert commands == [["train", "--data"], ["export", "/tmp/run/model.ckpt"]]
