"""A checkpoint of version 0.1.0, exported by this version, gives the graphs and the scores that 0.1.0 did."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from glowserve_export.bundle import export
from glowserve_export.source import load_glowserve_checkpoint

import glowserve
from glowserve.images import UInt8Array
from glowserve.runtime.repository import Bundle

OLD = Path(__file__).parents[1] / "data" / "0.1.0"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle that this version exports."""
    return export(load_glowserve_checkpoint(OLD / "model.ckpt"), tmp_path_factory.mktemp("models") / "digits")


def test_an_old_checkpoint_is_exported_with_the_same_scores(bundle: Bundle, digits: UInt8Array) -> None:
    expected = json.loads((OLD / "expected.json").read_text())
    scores = glowserve.open(bundle.path, device="cpu").score(digits[:16])
    # Folding and rounding may differ in the last bit on another processor.
    np.testing.assert_allclose(scores.log_likelihood, expected["log_likelihood"], rtol=1e-5)
    calibration = bundle.manifest.calibration.bits_per_dim
    np.testing.assert_allclose(scores.percentile, expected["percentile"], rtol=0, atol=100 / len(calibration))


@pytest.mark.parametrize("name", ["forward.onnx", "reverse.onnx"])
def test_an_old_checkpoint_gives_the_same_nodes(bundle: Bundle, name: str) -> None:
    ours, theirs = (onnx.load(folder / name).graph for folder in (bundle.path, OLD / "models/digits/1"))
    assert list(ours.node) == list(theirs.node)
    assert [tensor.name for tensor in ours.initializer] == [tensor.name for tensor in theirs.initializer]


def test_an_old_checkpoint_gives_a_bundle_of_format_1(bundle: Bundle) -> None:
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    assert (
        manifest["flow"].keys()
        == json.loads((OLD / "models/digits/1/manifest.json").read_text())["flow"].keys()
    )
    assert sorted(path.name for path in bundle.path.iterdir()) == [
        "calibration.npz",
        "explain.npy",
        "explain.onnx",
        "forward.onnx",
        "manifest.json",
        "manifest.json.sha256",
        "reverse.onnx",
    ]
