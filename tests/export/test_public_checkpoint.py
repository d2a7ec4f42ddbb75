"""A checkpoint of a public implementation, from the command line to a bundle that scores and samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from glowserve_export.frontends.public import IMPLEMENTATIONS

import glowserve
from glowserve.cli import main
from glowserve.runtime.repository import newest_bundle
from tests.export.frontends.public_models import public_model, write_public

SMALL = {
    "rosinality": {"in_channel": 1, "n_flow": 1, "n_block": 2, "image_size": 8, "n_bits": 4},
    "y0ast": {"image_shape": [8, 8, 1], "hidden_channels": 8, "K": 2, "L": 1, "n_bits": 4},
    "chaiyujin": {"image_shape": [8, 8, 1], "hidden_channels": 8, "K": 1, "L": 2},
    "normflows": {"input_shape": [1, 8, 8], "hidden_channels": 8, "K": 1, "L": 2, "n_bits": 4},
}


@pytest.mark.parametrize("kind", SMALL)
def test_a_public_checkpoint_becomes_a_bundle_that_scores_and_samples(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, arguments = write_public(tmp_path, public_model(kind, **SMALL[kind]))
    command = ["export", str(checkpoint), str(tmp_path / "models" / "public"), "--from", kind]
    assert main([*command, "--config", str(arguments), "--data", "digits"]) == 0
    assert "round trip, values changed" in capsys.readouterr().out
    manifest = newest_bundle(tmp_path / "models" / "public").manifest
    assert manifest.training.implementation == IMPLEMENTATIONS[kind]
    assert manifest.calibration.data == "digits"
    opened = glowserve.open(tmp_path / "models" / "public")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    assert opened.score(images).finite.all()
    assert (opened.encode(images).mismatched_values == 0).all()
    assert len(opened.sample(2, seed=0, temperature=0.5)) == 2


def test_arguments_and_held_out_images_must_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, arguments = write_public(tmp_path, public_model("y0ast", **SMALL["y0ast"]))
    command = ["export", str(checkpoint), str(tmp_path / "models" / "public"), "--from", "y0ast"]
    assert main(command) == 2
    assert "--from and --config must be given together" in capsys.readouterr().err
    assert main([*command, "--config", str(arguments)]) == 1
    assert "give images that it was not trained on with --data" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
