"""`glowserve demo` as a process, with a short training; and interrupted in each stage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

_STEPS = 40
_SECONDS = 240


def _start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "glowserve", "demo", "--out", str(out), "--steps", str(_STEPS)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _running(mention: Path) -> list[str]:
    """The command lines of processes that mention a path."""
    lines = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(mention) in line:
            lines.append(line)
    return lines


def _interrupt(out: Path, moment: str, end: Callable[[subprocess.Popen[str]], None]) -> str:
    """Runs a demo, ends it when it prints `moment`, and returns its output."""
    lines = []
    with _start(out) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if moment in line:
                end(process)
                moment = "\0"
    printed = "".join(lines)
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    assert _running(out) == []
    return printed


def _ctrl_c(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the service receives it, too


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished demo, and its output."""
    out = tmp_path_factory.mktemp("demo")
    process = _start(out)
    printed, _ = process.communicate(timeout=_SECONDS)
    assert process.returncode == 0, printed
    return out, printed


def test_it_leaves_pictures_a_checkpoint_and_a_bundle_and_no_process(finished: tuple[Path, str]) -> None:
    out, _ = finished
    for name in ("samples.png", "scores.png", "interpolation.png", "run/curve.png"):
        with Image.open(out / name) as picture:
            assert len(picture.convert("L").getcolors() or []) > 8, f"{name} is nearly blank"
    assert (out / "run" / "model.ckpt").is_file()
    assert {file.name for file in (out / "models" / "digits" / "1").iterdir()} == {
        "manifest.json",
        "manifest.json.sha256",
        "flow.json",
        "forward.onnx",
        "reverse.onnx",
        "explain.onnx",
        "explain.npy",
        "calibration.npz",
    }
    assert _running(out) == []


def test_it_prints_progress_results_and_what_to_try_next(finished: tuple[Path, str]) -> None:
    _, printed = finished
    for expected in (
        f"of {_STEPS}: bits/dim",
        "round trip, values changed",
        "out-of-distribution images",
        "held-out digits",
        "letters",
        "inverted digits",
        "noise",
        "blank",
        "179 of 179 digits decode from their latents to the same pixels, says the service; 179 when compared here",
        "glowserve serve --repository",
    ):
        assert expected in printed


def test_ctrl_c_during_training_leaves_no_process(tmp_path: Path) -> None:
    _interrupt(tmp_path, f"of {_STEPS}: bits/dim", _ctrl_c)


def test_ctrl_c_while_it_serves_leaves_no_process(finished: tuple[Path, str]) -> None:
    _interrupt(finished[0], "[4/5]", _ctrl_c)


def test_a_terminal_that_closes_leaves_no_process(finished: tuple[Path, str]) -> None:
    _interrupt(finished[0], "[4/5]", lambda process: process.send_signal(signal.SIGHUP))


def test_a_second_demo_skips_the_training_and_sigterm_ends_it_with_its_service(
    finished: tuple[Path, str],
) -> None:
    out, _ = finished
    before = (out / "run" / "model.ckpt").read_bytes()
    printed = _interrupt(out, "[5/5]", subprocess.Popen.terminate)
    assert "contains a finished run; training is skipped" in printed
    assert "bits/dim train" not in printed
    assert (out / "run" / "model.ckpt").read_bytes() == before
