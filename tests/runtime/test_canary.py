"""The canary: a sound bundle passes, and a graph or device that computes other numbers does not."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from glowserve.runtime.canary import check_canary, draw_canary
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import BundleError
from glowserve.runtime.manifest import manifest_checksum
from glowserve.runtime.repository import Bundle, open_bundle


def _changed(bundle: Bundle, target: Path, graph: str, constant: str, factor: float) -> Bundle:
    """A copy with one constant of one graph multiplied, and valid checksums."""
    shutil.copytree(bundle.path, target)
    model = onnx.load(target / graph)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == constant]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), constant))
    (target / graph).write_bytes(data := model.SerializeToString())
    manifest = json.loads((target / "manifest.json").read_text())
    for file in manifest["files"]:
        if file["name"] == graph:
            file["sha256"] = hashlib.sha256(data).hexdigest()
    (target / "manifest.json").write_text(json.dumps(manifest))
    checksum = manifest_checksum((target / "manifest.json").read_bytes())
    (target / "manifest.json.sha256").write_bytes(checksum)
    return open_bundle(target)


def test_a_sound_bundle_passes_and_draws_its_canary_again(bundle: Bundle, engine: Engine) -> None:
    check_canary(engine, bundle)
    canary = bundle.manifest.canary
    assert canary == draw_canary(engine, 64)
    assert canary.temperature > 0
    assert np.isfinite(canary.log_likelihood)
    assert len(set(canary.image)) > 4


@pytest.mark.parametrize(
    ("graph", "constant", "words"),
    [
        ("forward.onnx", "level1.step1.mix.weight", "its canary has a log-likelihood of"),
        ("forward.onnx", "log_det_constant", "its canary has a log-likelihood of"),
        ("reverse.onnx", "level2.step4.weight", "its canary, drawn again, differs by"),
        ("reverse.onnx", "bins", "its canary, drawn again, differs by"),
    ],
)
def test_a_graph_that_computes_other_numbers_is_refused(
    bundle: Bundle, tmp_path: Path, graph: str, constant: str, words: str
) -> None:
    changed = _changed(bundle, tmp_path / "1", graph, constant, 1.2)
    with pytest.raises(BundleError, match=words):
        check_canary(Engine(changed, RuntimeConfig(device="cpu")), changed)


def test_a_graph_that_computes_no_finite_number_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    changed = _changed(bundle, tmp_path / "1", "forward.onnx", "log_det_constant", np.nan)
    with pytest.raises(BundleError, match="a log-likelihood of nan nats"):
        check_canary(Engine(changed, RuntimeConfig(device="cpu")), changed)


def test_a_model_without_a_finite_sample_has_no_canary(bundle: Bundle, tmp_path: Path) -> None:
    changed = _changed(bundle, tmp_path / "1", "reverse.onnx", "bins", np.nan)
    with pytest.raises(BundleError, match="not even the mode of the model is finite: the training diverged"):
        draw_canary(Engine(changed, RuntimeConfig(device="cpu")), 64)


def test_a_bundle_without_a_canary_is_refused(bundle: Bundle, engine: Engine) -> None:
    without = Bundle(bundle.path, type(bundle.manifest).FromString(bundle.manifest.SerializeToString()))
    without.manifest.ClearField("canary")
    with pytest.raises(BundleError, match="it has no canary; export the model again"):
        check_canary(engine, without)
