"""The demo, run for real but trained for moments; and interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from glowserve.demo.strangers import letters, strangers
from glowserve.images import UInt8Array

_STEPS = 40


def _start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "glowserve", "demo", "--out", str(out), "--steps", str(_STEPS)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that a demo left, and what it printed."""
    out = tmp_path_factory.mktemp("demo")
    process = _start(out)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    return out, printed


def test_the_demo_leaves_pictures_checkpoint_and_bundle(finished: tuple[Path, str]) -> None:
    out, _ = finished
    for name in ("samples.png", "scores.png", "interpolation.png", "run/curve.png"):
        with Image.open(out / name) as picture:
            assert len(picture.convert("L").getcolors() or []) > 8, f"{name} is nearly blank"
    assert (out / "run" / "model.ckpt").is_file()
    assert {file.name for file in (out / "models" / "digits" / "1").iterdir()} == {
        "manifest.json",
        "manifest.json.sha256",
        "forward.onnx",
        "reverse.onnx",
    }


def test_the_demo_prints_progress_a_table_and_what_to_try_next(finished: tuple[Path, str]) -> None:
    _, printed = finished
    for expected in (
        f"of {_STEPS}: bits/dim",
        "round trip, values changed",
        "held-out digits",
        "letters",
        "inverted digits",
        "noise",
        "blank",
        "179 of 179 digits decode from their latents to the same pixels (179 compared here)",
        "glowserve serve --repository",
    ):
        assert expected in printed


def test_the_demo_leaves_nothing_running(finished: tuple[Path, str]) -> None:
    assert _running(finished[0]) == []


def test_a_second_demo_goes_on_from_the_finished_training(finished: tuple[Path, str]) -> None:
    out, _ = finished
    before = (out / "run" / "model.ckpt").read_bytes()
    printed, _ = _start(out).communicate(timeout=240)
    assert (out / "run" / "model.ckpt").read_bytes() == before
    assert "bits/dim train" not in printed


@pytest.mark.parametrize("moment", ["of 40: bits/dim", "[2/5]", "[3/5]", "[4/5]", "[5/5]"])
def test_ctrl_c_at_any_point_leaves_nothing_running(
    moment: str, finished: tuple[Path, str], tmp_path: Path
) -> None:
    out = tmp_path if "bits/dim" in moment else finished[0]
    process = _start(out)
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if moment in line:
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does
                break
        printed = process.stdout.read()
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    assert _running(out) == []


def test_sigterm_ends_the_demo_and_its_service(finished: tuple[Path, str]) -> None:
    process = _start(finished[0])
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if "[4/5]" in line:
                process.terminate()
                break
        process.stdout.read()
    assert process.returncode == 130
    assert _running(finished[0]) == []


def test_strangers_have_the_shape_of_digits_and_are_none(digits: UInt8Array) -> None:
    for name, images in strangers(digits).items():
        assert images.shape[1:] == digits.shape[1:], name
        assert images.dtype == digits.dtype, name
        assert not any((image == digits).all(axis=(1, 2, 3)).any() for image in images), name


def test_every_letter_is_drawn_large_and_differently() -> None:
    drawn = letters(8, 8)
    assert len(drawn) == 22
    assert len({image.tobytes() for image in drawn}) == 22
    assert all(image.max() > 128 for image in drawn)
