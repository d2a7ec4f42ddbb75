"""`glowserve verify` and `glowserve inspect`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from glowserve.cli import main
from glowserve.runtime.repository import Bundle


def test_an_intact_bundle_passes_and_its_verification_is_printed(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (repository / "digits", repository / "digits" / "1"):
        assert main(["verify", str(path), "--device", "cpu"]) == 0
        printed = capsys.readouterr().out
        assert "no file has changed since the export, and on cpu the graphs reproduce their" in printed
        assert "round trip, values changed" in printed
        assert "checkerboard" in printed
    assert main(["verify", str(path), "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["device"] == "cpu"
    assert result["checks"]["round trip, values changed"] == 0
    assert result["steps"]["level1.step1"]["condition_number"] >= 1
    assert result["unseen"]["noise"]["images"] == 32


@pytest.mark.parametrize(
    "name",
    [
        *("forward.onnx", "reverse.onnx", "explain.onnx", "explain.npy"),
        *("manifest.json", "manifest.json.sha256", "flow.json"),
    ],
)
def test_one_flipped_bit_in_any_file_is_refused(
    repository: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(repository / "digits", tmp_path / "digits")
    path = tmp_path / "digits" / "1" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert main(["verify", str(tmp_path / "digits")]) == 1
    error = capsys.readouterr().err
    assert "is not the file that was exported" in error
    assert "export the model again" in error


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, code in (("verify", 1), ("inspect", 2)):
        assert main([command, str(tmp_path / "nothing")]) == code
        assert "there is no bundle" in capsys.readouterr().err


def test_inspect_prints_the_manifest(
    repository: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(repository / "digits")]) == 0
    printed = capsys.readouterr().out
    training = bundle.manifest.training
    for words in (
        "digits, version 1",
        "8 x 8 grey, 4 bits",
        "L=2 K=4 width=32, affine coupling (tanh) and 4 checkerboards, qlu 1x1 convolutions",
        "variational dequantization, logit preprocessing",
        "fp32 in the coupling networks",
        f"by glowserve, {training.steps} steps, {training.images_seen:,} images of digits",
        "bits/dim",
        "forward.onnx",
        "round trip, values changed",
        "level2.step4",
    ):
        assert words in printed
    assert main(["inspect", str(repository / "digits"), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["flow"]["levels"] == 2
    assert manifest["flow"]["checkerboards"] == 4
    assert len(manifest["verification"]["steps"]) == 8
