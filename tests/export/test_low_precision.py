"""Bundles of low precision: what they state, what they lose, and that they are served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import glowserve_export.bundle
import numpy as np
import pytest
from glowserve_export.bundle import export as export_source
from glowserve_export.errors import VerificationError
from glowserve_export.folded import FoldedGlow
from glowserve_export.precision import Precision
from glowserve_export.source import load_glowserve_checkpoint

import glowserve
from glowserve.images import UInt8Array
from glowserve.runtime.canary import check_canary
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.repository import Bundle


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_low_precision_bundle_states_what_it_lost_and_is_served(
    precision: str, checkpoint: Path, bundle: Bundle, digits: UInt8Array, tmp_path: Path
) -> None:
    low = export_source(load_glowserve_checkpoint(checkpoint), tmp_path / "digits", precision=precision)
    assert low.manifest.flow.precision == precision
    checks = {check.name: check for check in low.manifest.verification.checks}
    lost = checks[f"bits/dim lost in {precision}"]
    assert abs(lost.value) <= lost.bound == {"fp16": 1e-3, "int8": 0.02}[precision]
    assert checks["bits/dim lost, worst image"].value >= lost.value
    assert 0 <= checks["round trip, share of values changed"].value <= 0.5
    sizes = [sum(file.size for file in one.manifest.files) for one in (low, bundle)]
    assert sizes[0] < sizes[1]
    assert low.manifest.files[0].operations >= bundle.manifest.files[0].operations

    check_canary(Engine(low, RuntimeConfig(device="cpu")), low)
    ours, theirs = (glowserve.open(one.path).score(digits).bits_per_dim for one in (low, bundle))
    assert 0 < np.abs(ours - theirs).max() < 0.5
    # Its percentiles are of its own scores.
    assert low.manifest.calibration.bits_per_dim != bundle.manifest.calibration.bits_per_dim


def test_a_low_precision_that_loses_too_much_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = glowserve_export.bundle.forward_graph

    def worse(glow: FoldedGlow, precision: Precision) -> Any:
        model = write(glow, precision)
        (bias,) = [t for t in model.graph.initializer if t.name == "log_det_constant"]
        array = np.frombuffer(bias.raw_data, np.float32) - np.float32(64 * np.log(2) * 0.05)
        bias.raw_data = array.astype(np.float32).tobytes()
        return model

    monkeypatch.setattr(glowserve_export.bundle, "forward_graph", worse)
    with pytest.raises(VerificationError, match=r"bits/dim lost in fp16 is 0\.05 and must be at most 0\.001"):
        export_source(load_glowserve_checkpoint(checkpoint), tmp_path / "digits", precision="fp16")
    assert not (tmp_path / "digits").exists()


def test_an_unknown_precision_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(
        glowserve_export.bundle.ExportError, match="precision is 'fp8'; it must be one of fp32, fp16, int8"
    ):
        export_source(load_glowserve_checkpoint(checkpoint), tmp_path / "digits", precision="fp8")
