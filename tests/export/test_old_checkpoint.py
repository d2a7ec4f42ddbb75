"""A checkpoint of version 0.1.0, exported by this version, scores as the bundle did that 0.1.0 exported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from glowserve_export.bundle import export
from glowserve_export.source import load_glowserve_checkpoint

import glowserve
from glowserve.images import UInt8Array

OLD = Path(__file__).parents[1] / "data" / "0.1.0"


def test_an_old_checkpoint_is_exported_with_the_same_scores(digits: UInt8Array, tmp_path: Path) -> None:
    bundle = export(load_glowserve_checkpoint(OLD / "model.ckpt"), tmp_path / "digits")
    expected = json.loads((OLD / "expected.json").read_text())
    scores = glowserve.open(bundle.path, device="cpu").score(digits[:16])
    # Folding and rounding may differ in the last bit on another processor.
    np.testing.assert_allclose(scores.log_likelihood, expected["log_likelihood"], rtol=1e-5)
    calibration = bundle.manifest.calibration.bits_per_dim
    np.testing.assert_allclose(scores.percentile, expected["percentile"], rtol=0, atol=100 / len(calibration))
