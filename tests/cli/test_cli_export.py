"""`glowserve export`: what it prints, and what it warns of."""

from __future__ import annotations

import json
import math
import os
import pty
import subprocess
import sys
import termios
from dataclasses import replace
from pathlib import Path
from typing import Any

import glowserve_export.bundle
import numpy as np
import pytest
import torch

from glowserve.cli import main
from glowserve.runtime.engine import Engine, Float32Array, Reverse
from glowserve.runtime.repository import newest_bundle
from tests.export.frontends.public_models import public_model, write_public

Printed = pytest.CaptureFixture[str]


def test_the_number_of_images_to_verify_on_can_be_chosen(
    checkpoint: Path, tmp_path: Path, capsys: Printed
) -> None:
    export = ["export", str(checkpoint), str(tmp_path / "digits"), "--verification-images"]
    assert main([*export, "5"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("verification on 5 held-out images ")
    assert "verifying the graphs on 5 held-out images" in printed.err
    assert newest_bundle(tmp_path / "digits").manifest.verification.images == 5
    for wanted in ("0", "-1", "180"):
        assert main([*export, wanted]) == 1
        assert f"verification images is {wanted}, and data 'digits' has 179" in capsys.readouterr().err


def test_held_out_bits_per_dim_are_printed(checkpoint: Path, tmp_path: Path, capsys: Printed) -> None:
    assert main(["export", str(checkpoint), str(tmp_path / "digits"), "--json"]) == 0
    printed = capsys.readouterr()
    assert "warning" not in printed.err
    result = json.loads(printed.out)
    assert result["images"] == 128
    assert result["held_out"]["images"] == 90
    bits = result["held_out"]["bits_per_dim"]
    assert 0 < bits < 4
    assert main(["inspect", str(tmp_path / "digits")]) == 0
    line = f"held-out bits/dim: {bits:.3f}, mean of 90 images of digits; a model that knows nothing needs 4"
    assert line in capsys.readouterr().out


def test_a_model_to_which_held_out_images_are_no_likelier_than_noise_is_warned_of(
    tmp_path: Path, capsys: Printed
) -> None:
    model = public_model("y0ast", image_shape=(8, 8, 1), n_bits=3)
    checkpoint, arguments = write_public(tmp_path, model)
    imported = ["--from", "y0ast", "--config", str(arguments), "--data", "digits"]
    assert main(["export", str(checkpoint), str(tmp_path / "models" / "y0ast"), *imported]) == 0
    printed = capsys.readouterr()
    assert "bits/dim, and a model that knows nothing needs 3: its training was short, --data" in printed.err
    assert "--config tells an image size, n_bits or scale_map that is not the model's" in printed.err
    assert "a model that knows nothing needs 3" in printed.out


def test_samples_that_are_not_finite_are_counted(
    checkpoint: Path, tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Exploding(Engine):
        """Overflows on three samples."""

        def reverse(self, latent: Float32Array, *args: Any, **options: Any) -> Reverse:
            decoded = super().reverse(latent, *args, **options)
            if len(latent) == 32 and abs(float(np.square(latent).mean()) - 1) < 0.05:
                pixels = decoded.pixels.copy()
                pixels[:3] = math.nan
                return replace(decoded, pixels=pixels)
            return decoded

    monkeypatch.setattr(glowserve_export.bundle, "Engine", Exploding)
    assert main(["export", str(checkpoint), str(tmp_path / "digits")]) == 0
    printed = capsys.readouterr().out
    assert "samples at temperature 1, not finite                         3 of 32" in printed
    assert "\n3 of 32 samples at temperature 1 are not finite: a service draws them again" in printed
    assert "\nSample at a lower temperature, train the model longer" in printed
    assert "nan" not in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_here_is_refused(checkpoint: Path, tmp_path: Path, capsys: Printed) -> None:
    assert main(["export", str(checkpoint), str(tmp_path / "digits"), "--device", "cuda"]) == 2
    assert "device is 'cuda', and PyTorch finds no usable GPU; use 'cpu' or 'auto'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_shows_the_progress_of_the_verification(checkpoint: Path, tmp_path: Path) -> None:
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, 120))
    command = [sys.executable, "-m", "glowserve", "export", str(checkpoint), str(tmp_path / "digits")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as process:
        os.close(stderr)
        shown = b""
        try:
            while part := os.read(terminal, 2**16):
                shown += part
        except OSError:  # the other end is closed
            pass
        assert process.stdout is not None
        printed = process.stdout.read()
    os.close(terminal)
    assert process.returncode == 0
    for doing in (b"scoring in float64", b"decoding", b"out-of-distribution images: noise", b"sampling"):
        assert doing + b": " in shown
    assert printed.startswith(b"verification on 128 held-out images")
