"""A model with spline couplings, from its training to a served bundle."""

from __future__ import annotations

import json
from pathlib import Path

import glowserve_training.run
import numpy as np
import pytest
from glowserve_export.bundle import export
from glowserve_export.source import Source, load_glowserve_checkpoint
from glowserve_training import schedule
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.presets import run_config

import glowserve
from glowserve.images import UInt8Array
from glowserve.runtime.randomness import dequantization_noise
from glowserve.runtime.repository import Bundle, newest_bundle
from tests.export.unpublished import add_to_constant, verification_error
from tests.training.runs import run


@pytest.fixture(scope="module")
def spline_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a model that was trained on digits for a second or two."""
    sizes = {"levels": 2, "steps_per_level": 1, "width": 8, "pixel_width": 8, "checkerboards": 2}
    config = run_config("digits", coupling="spline", steps=20, batch_size=16, **sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "_VALIDATIONS", 1)
        patch.setattr(glowserve_training.run, "draw_curve", lambda *_: None)
        return run(config, tmp_path_factory.mktemp("spline") / "run")


@pytest.fixture(scope="module")
def spline_source(spline_checkpoint: Path) -> Source:
    return load_glowserve_checkpoint(spline_checkpoint)


@pytest.fixture(scope="module")
def spline_bundle(spline_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("models") / "spline"
    export(spline_source, path)
    return newest_bundle(path)


def test_a_checkpoint_keeps_the_spline(spline_checkpoint: Path) -> None:
    config = load_checkpoint(spline_checkpoint).model.config
    assert (config.coupling, config.spline_bins, config.spline_interval) == ("spline", 8, 3.0)


def test_the_bundle_is_verified_and_says_what_its_couplings_are(spline_bundle: Bundle) -> None:
    flow = spline_bundle.manifest.flow
    assert (flow.coupling, flow.coupling_scale) == ("spline", "tanh")
    # Services that do not know the word refuse it, in the file that they read first.
    assert json.loads((spline_bundle.path / "manifest.json").read_text())["flow"]["coupling"] == "spline"
    checks = {check.name: check for check in spline_bundle.manifest.verification.checks}
    assert 0 < checks["log-likelihood, relative error"].value < 2e-6
    assert checks["round trip, values changed"].value == 0
    assert 0 < checks["round trip, farthest from what was encoded"].value < 1e-3


def test_the_bundle_scores_like_pytorch_is_lossless_and_samples(
    spline_bundle: Bundle, spline_source: Source, digits: UInt8Array
) -> None:
    model = glowserve.open(spline_bundle.path, device="cpu")
    expected = spline_source.reference.log_likelihood(digits, dequantization_noise(0, digits))
    np.testing.assert_allclose(model.score(digits).log_likelihood, expected, rtol=1e-5)
    encodings = model.encode(digits)
    assert encodings.mismatched_values.sum() == 0
    decoded = model.decode(encodings.latents)
    np.testing.assert_array_equal(np.asarray(decoded) >> 4, digits >> 4)
    assert len(model.sample(4, temperature=1)) == 4


@pytest.mark.parametrize(
    ("constant", "amount", "layer"),
    [
        ("spline.table1.bias", 0.5, "pixels.coupling1"),
        ("spline.unit2.bias", 0.5, "level1.step1"),
        ("level1.step1.bound", np.nan, "level1.step1"),
    ],
)
def test_a_wrong_number_of_a_spline_is_found_in_its_layer(
    constant: str, amount: float, layer: str, spline_source: Source, digits: UInt8Array, tmp_path: Path
) -> None:
    change = add_to_constant(constant, amount)
    text = verification_error(
        tmp_path, spline_source.reference, spline_source.glow, digits[:16], forward=change
    )
    assert f"the layer to look at is {layer} of forward.onnx." in text
