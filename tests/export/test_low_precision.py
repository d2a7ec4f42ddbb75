"""A bundle of low precision, from the export to scores: what it states, what it loses, and that it can be served."""

from __future__ import annotations

from pathlib import Path

import glowserve_export.bundle
import numpy as np
import onnx
import pytest
from glowserve_export.bundle import export
from glowserve_export.errors import ExportError, VerificationError
from glowserve_export.folded import FoldedGlow
from glowserve_export.precision import Precision
from glowserve_export.source import Source

import glowserve
from glowserve.images import UInt8Array
from glowserve.runtime.calibration import bundle_calibration
from glowserve.runtime.canary import check_canary
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.repository import Bundle
from tests.export.unpublished import add_to_constant
from tests.runtime.wide import assert_wide_runs_are_the_same


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_low_precision_bundle_states_its_loss_and_can_be_served(
    precision: str, source: Source, bundle: Bundle, digits: UInt8Array, tmp_path: Path
) -> None:
    low = export(source, tmp_path / "digits", precision=precision)
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
    assert_wide_runs_are_the_same(Engine(low, RuntimeConfig(device="cpu", threads=1, wide_threads=2)), digits)
    ours, theirs = (glowserve.open(one.path).score(digits).bits_per_dim for one in (low, bundle))
    assert 0 < np.abs(ours - theirs).max() < 0.5
    # Percentiles are computed from its own scores.
    assert low.manifest.calibration.bits_per_dim != bundle.manifest.calibration.bits_per_dim
    own, others = bundle_calibration(low), bundle_calibration(bundle)
    assert own is not None
    assert others is not None
    assert (own.images.log_prior != others.images.log_prior).any()
    assert (own.density.levels.mean != others.density.levels.mean).any()


def test_a_low_precision_that_loses_too_much_is_refused(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = glowserve_export.bundle.forward_graph

    def worse(glow: FoldedGlow, precision: Precision) -> onnx.ModelProto:
        model = write(glow, precision)
        add_to_constant("log_det_constant", -64 * np.log(2) * 0.05)(model)
        return model

    monkeypatch.setattr(glowserve_export.bundle, "forward_graph", worse)
    with pytest.raises(VerificationError, match=r"bits/dim lost in fp16 is 0\.05 and must be at most 0\.001"):
        export(source, tmp_path / "digits", precision="fp16")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_precision_is_refused_with_nothing_written(source: Source, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="precision is 'fp8'; it must be one of fp32, fp16, int8"):
        export(source, tmp_path / "digits", precision="fp8")
    assert list(tmp_path.iterdir()) == []
