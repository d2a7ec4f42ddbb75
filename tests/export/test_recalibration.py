"""`glowserve calibrate`: the next version of a bundle has the same graphs and another calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import glowserve
from glowserve.cli import main
from glowserve.images import UInt8Array
from glowserve.runtime.calibration import bundle_calibration
from glowserve.runtime.repository import Bundle, open_bundle
from tests.service.bundles import without_calibration


def test_a_bundle_without_a_calibration_gets_the_one_of_its_export(
    bundle: Bundle, digits: UInt8Array, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "digits"
    without_calibration(bundle.path, model / "1")
    assert main(["calibrate", str(model), "--data", "digits"]) == 0
    assert "calibrated on 90 images, with a density of 89 others" in capsys.readouterr().out
    renewed = open_bundle(model / "2")
    for name in ("forward.onnx", "reverse.onnx"):
        assert renewed.read(name) == bundle.read(name)
    old, new = bundle_calibration(bundle), bundle_calibration(renewed)
    assert old is not None
    assert new is not None
    np.testing.assert_allclose(new.images.log_prior, old.images.log_prior, rtol=1e-4)
    scores = [
        glowserve.open(path, device="cpu").score(digits, scores=["anomaly_p_value"])
        for path in (bundle.path, model)
    ]
    np.testing.assert_allclose(scores[0].anomaly_p_value, scores[1].anomaly_p_value, atol=3 / 91)


def test_a_folder_that_is_no_version_gets_no_neighbour(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_calibration(bundle.path, tmp_path / "copy")
    assert main(["calibrate", str(tmp_path / "copy"), "--data", "digits"]) == 1
    assert "copy is no folder REPOSITORY/MODEL/VERSION" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_data_that_is_not_there_leaves_no_version(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "digits"
    without_calibration(bundle.path, model / "1")
    assert main(["calibrate", str(model), "--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert {path.name for path in model.iterdir()} == {"1"}
