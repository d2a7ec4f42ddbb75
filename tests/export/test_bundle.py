"""Exporting: what is written, when it appears, and what it says of itself."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import glowserve_export.bundle
import numpy as np
import onnx
import pytest
from glowserve_export.bundle import export as export_source
from glowserve_export.errors import (
    DataChangedError,
    ExportError,
    NotInvertibleError,
    VerificationError,
)
from glowserve_export.source import load_glowserve_checkpoint
from glowserve_training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from glowserve_training.data import ImageData, load_images
from glowserve_training.errors import TrainingError

from glowserve.images import UInt8Array
from glowserve.likelihood import bits_per_dim
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine, Float32Array, Forward
from glowserve.runtime.randomness import dequantization_noise
from glowserve.runtime.repository import Bundle
from glowserve.v1 import manifest_pb2


def export_checkpoint(checkpoint: Path, model_dir: Path, **options: Any) -> Bundle:
    """Exports what `glowserve train` left."""
    return export_source(load_glowserve_checkpoint(checkpoint), model_dir, **options)


SaveChanged = Callable[..., Path]


@pytest.fixture(scope="module")
def trained(checkpoint: Path) -> Checkpoint:
    """The shared checkpoint; tests change copies of it."""
    return load_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def images(trained: Checkpoint) -> ImageData:
    """The data that it was trained on."""
    return load_images(trained.data)


@pytest.fixture
def save_changed(checkpoint: Path, tmp_path: Path) -> SaveChanged:
    """Writes the shared checkpoint with one weight changed in place, or another training record."""

    def save(change: Callable[[Any], None] | None = None, **record: Any) -> Path:
        changed = load_checkpoint(checkpoint)
        if change:
            change(changed.model.state_dict())
        path = tmp_path / "changed.ckpt"
        save_checkpoint(replace(changed, training=replace(changed.training, **record)), path)
        return path

    return save


def _entries(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.exists() else set()


# Versions


def test_each_export_gets_the_next_version_and_the_same_graphs(checkpoint: Path, tmp_path: Path) -> None:
    model = tmp_path / "digits"
    bundles = [export_checkpoint(checkpoint, model) for _ in range(2)]
    assert _entries(model) == {"1", "2"}
    assert [bundle.manifest.version for bundle in bundles] == [1, 2]
    assert [bundle.path for bundle in bundles] == [model / "1", model / "2"]
    for name in ("forward.onnx", "reverse.onnx"):
        assert bundles[0].read(name) == bundles[1].read(name)
    assert bundles[0].manifest.calibration == bundles[1].manifest.calibration
    assert bundles[0].manifest.verification == bundles[1].manifest.verification


def test_the_next_version_follows_the_highest_by_number(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("9", "10", "11.old", "latest"):
        (tmp_path / "digits" / name).mkdir(parents=True)
        (tmp_path / "digits" / name / "kept").touch()
    assert export_checkpoint(checkpoint, tmp_path / "digits").path.name == "11"
    assert all((tmp_path / "digits" / name / "kept").exists() for name in ("9", "10", "11.old", "latest"))


def test_two_exports_at_once_get_two_versions(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=60)
    next_version, asked = glowserve_export.bundle._next_version, threading.local()

    def chosen(model: Path) -> int:
        found = next_version(model)
        if not hasattr(asked, "before"):  # neither goes on before both have chosen, and chosen the same
            asked.before = found
            both.wait()
        return found

    monkeypatch.setattr(glowserve_export.bundle, "_next_version", chosen)
    with ThreadPoolExecutor(2) as pool:
        exports = [pool.submit(export_checkpoint, checkpoint, tmp_path / "digits") for _ in range(2)]
        bundles = [future.result(60) for future in exports]
    assert sorted(bundle.manifest.version for bundle in bundles) == [1, 2]
    assert _entries(tmp_path / "digits") == {"1", "2"}
    for bundle in bundles:
        assert bundle.path.name == str(bundle.manifest.version)


def test_a_number_that_is_taken_by_something_else_is_passed_over(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "1").write_text("not a folder")
    assert export_checkpoint(checkpoint, tmp_path / "digits").manifest.version == 2
    assert _entries(tmp_path / "digits") == {"1", "2"}


# All or nothing


def test_a_bundle_appears_whole_after_its_proof(checkpoint: Path, tmp_path: Path) -> None:
    model, seen = tmp_path / "digits", []

    def say(text: str) -> None:
        visible = {name for name in _entries(model) if not name.startswith(".")}
        seen.append((text.partition(" ")[0], visible))

    bundle = export_checkpoint(checkpoint, model, say=say)
    stages = ["reading", "writing", "proving", "calibrating"]
    assert seen == [(stage, set()) for stage in stages]
    assert _entries(bundle.path) == {"manifest.json", "manifest.json.sha256", "forward.onnx", "reverse.onnx"}
    for file in bundle.path.iterdir():
        assert file.stat().st_mode & 0o777 == 0o644
    assert bundle.path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("stage", ["writing", "proving", "calibrating"])
def test_an_interrupted_export_leaves_nothing(checkpoint: Path, tmp_path: Path, stage: str) -> None:
    def say(text: str) -> None:
        if text.startswith(stage):
            assert [name[0] for name in _entries(tmp_path / "digits")] == ["."]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(checkpoint, tmp_path / "digits", say=say)
    assert _entries(tmp_path / "digits") == set()


def test_a_weight_that_is_not_finite_ends_the_export_with_nothing_written(
    save_changed: SaveChanged, tmp_path: Path
) -> None:
    name = "levels.1.steps.2.coupling.network.0.conv.weight"
    path = save_changed(lambda weights: weights[name].view(-1)[3].fill_(np.nan))
    with pytest.raises(NotInvertibleError, match=f"weight {name} is not finite"):
        export_checkpoint(path, tmp_path / "digits")
    assert _entries(tmp_path / "digits") == set()


def test_a_file_that_is_no_checkpoint_is_refused_with_nothing_written(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.ckpt", Path(__file__)):
        with pytest.raises(TrainingError, match=path.name):
            export_checkpoint(path, tmp_path / "digits")
    assert not (tmp_path / "digits").exists()


@pytest.mark.parametrize(
    "name", ["..", ".hidden", "-flag", "_x", "two words", "dígitos", "x" * 129, "new\nline"]
)
def test_a_name_that_no_model_can_have_is_refused(checkpoint: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(ExportError, match=r"model name .*must be 1 to 128 letters"):
        export_checkpoint(checkpoint, tmp_path / "models" / name)
    assert _entries(tmp_path / "models") == set()


def test_a_held_out_image_without_a_finite_likelihood_ends_the_export(
    checkpoint: Path, tmp_path: Path, images: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Overflowing(Engine):
        """Overflows on one image, which the proof does not look at and calibration does."""

        def forward(self, images_: UInt8Array, noise: Float32Array) -> Forward:
            result = super().forward(images_, noise)
            lost = (images_ == images.validation[40]).all(axis=(1, 2, 3))
            return replace(result, log_likelihood=np.where(lost, -np.inf, result.log_likelihood))

    monkeypatch.setattr(glowserve_export.bundle, "Engine", Overflowing)
    with pytest.raises(VerificationError, match="1 of 179 held-out images have no finite likelihood"):
        export_checkpoint(checkpoint, tmp_path / "digits")
    assert _entries(tmp_path / "digits") == set()


def test_what_a_killed_exporter_left_goes_and_what_a_living_one_writes_stays(
    checkpoint: Path, tmp_path: Path
) -> None:
    model = tmp_path / "digits"
    for name in ("dead", "alive", "new"):
        (model / f".staging-{name}").mkdir(parents=True)
        (model / f".staging-{name}" / "forward.onnx").write_bytes(b"half")
    for name in ("dead", "alive"):
        os.utime(model / f".staging-{name}", (0, 0))
    alive = os.open(model / ".staging-alive", os.O_RDONLY)
    own = []

    def say(stage: str) -> None:
        if stage == "writing graphs":
            own.extend(_entries(model) - {".staging-alive", ".staging-new"})
            folder = os.open(model / own[0], os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(folder)

    try:
        fcntl.flock(alive, fcntl.LOCK_EX)
        export_checkpoint(checkpoint, model, say=say)
    finally:
        os.close(alive)
    assert len(own) == 1
    assert _entries(model) == {"1", ".staging-alive", ".staging-new"}


# Held-out images


def test_other_images_than_in_training_are_refused_with_the_remedy(
    save_changed: SaveChanged, tmp_path: Path
) -> None:
    path = save_changed(held_out_digest="0" * 64)
    with pytest.raises(DataChangedError, match=r"data 'digits' no longer yields .*--data"):
        export_checkpoint(path, tmp_path / "digits")
    assert _entries(tmp_path / "digits") == set()


def test_images_can_be_given_in_place_of_those_of_training(
    save_changed: SaveChanged, tmp_path: Path, images: ImageData
) -> None:
    elsewhere = tmp_path / "elsewhere.npz"
    np.savez(elsewhere, images=np.concatenate((images.validation, images.test)))
    bundle = export_checkpoint(
        save_changed(held_out_digest="0" * 64), tmp_path / "digits", data=str(elsewhere)
    )
    assert bundle.manifest.calibration.data == str(elsewhere)
    assert bundle.manifest.training.data == "digits"
    assert len(bundle.manifest.calibration.bits_per_dim) == 35  # a tenth of 358
    assert bundle.manifest.verification.images == 35


# The manifest


def test_the_manifest_describes_image_and_flow(bundle: Bundle, trained: Checkpoint) -> None:
    manifest = bundle.manifest
    assert manifest.format_version == 1
    assert (manifest.model, manifest.version) == ("digits", 1)
    assert manifest.image == manifest_pb2.ImageSpec(height=8, width=8, channels=1, n_bits=4, latent_size=64)
    assert manifest.flow == manifest_pb2.Flow(
        levels=2,
        steps_per_level=4,
        width=32,
        coupling="affine",
        parametrization="lu",
        dequantization="uniform",
        coupling_actnorm=True,
        precision="fp32",
        parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
    )
    assert manifest.preparation.filter == trained.data.preparation.filter
    assert manifest.randomness == manifest_pb2.RANDOMNESS_VERSION_PHILOX_BOX_MULLER
    assert abs(manifest.created_at.ToSeconds() - time.time()) < 3600


def test_the_manifest_holds_length_and_hash_of_each_graph(bundle: Bundle) -> None:
    files = {file.name: file for file in bundle.manifest.files}
    assert files.keys() == {"forward.onnx", "reverse.onnx"}
    for name, file in files.items():
        data = (bundle.path / name).read_bytes()
        assert file.size == len(data)
        assert file.sha256 == hashlib.sha256(data).hexdigest()


def test_the_manifest_says_how_the_model_was_trained_and_with_what(
    bundle: Bundle, trained: Checkpoint
) -> None:
    training = bundle.manifest.training
    assert (training.data, training.steps, training.images_seen) == ("digits", 200, 6400)
    assert (training.seed, training.split_seed) == (0, 0)
    assert dict(training.metrics) == trained.training.metrics
    assert training.metrics.keys() >= {"validation_bits_per_dim", "test_bits_per_dim"}
    assert bundle.manifest.tools.keys() >= {"torch", "onnx", "numpy"}
    assert all(bundle.manifest.tools.values())
    assert bundle.manifest.glowserve_version


def test_the_manifest_states_every_figure_of_the_proof_with_its_bound(bundle: Bundle) -> None:
    checks = {check.name: check for check in bundle.manifest.verification.checks}
    bounds = {name: check.bound for name, check in checks.items() if check.HasField("bound")}
    assert bounds == {
        "worst condition number": 1e6,
        "worst |W W^-1 - I|": 1e-2,
        "log-likelihood, relative error": 1e-5,
        "log-likelihood, error in bits/dim": 1e-3,
        "round trip, values changed": 0,
        "decoding, error in grey values": 0.1,
    }
    assert checks.keys() - bounds.keys() == {
        "round trip, farthest from what was encoded",
        "round trip with random noise, values changed",
        "decoding samples at temperature 1, error in grey values",
    }
    for name, bound in bounds.items():
        assert checks[name].value <= bound, name
    assert checks["worst condition number"].value > 1
    assert 0 < checks["log-likelihood, relative error"].value < 2e-6
    assert 0 < checks["round trip, farthest from what was encoded"].value < 0.01
    for name in ("worst condition number", "worst |W W^-1 - I|"):
        assert checks[name].layer.startswith("level")
    assert bundle.manifest.verification.images == 128


def test_the_manifest_states_every_matrix_and_what_became_of_unseen_images(bundle: Bundle) -> None:
    verification = bundle.manifest.verification
    checks = {check.name: check for check in verification.checks}
    assert [step.step for step in verification.steps] == [
        f"level{i}.step{k}" for i in (1, 2) for k in (1, 2, 3, 4)
    ]
    worst = max(verification.steps, key=lambda step: step.condition_number)
    assert checks["worst condition number"].layer == worst.step
    assert checks["worst condition number"].value == worst.condition_number
    assert checks["worst |W W^-1 - I|"].value == max(step.residual for step in verification.steps)
    unseen = {proof.kind: proof for proof in verification.unseen}
    assert list(unseen) == ["noise", "constant", "inverted", "checkerboard"]
    for proof in unseen.values():
        assert 0 <= proof.returned <= proof.finite <= proof.images
        assert proof.images
    assert unseen["inverted"].finite


def test_the_manifest_says_what_a_graph_costs(bundle: Bundle) -> None:
    # Digits, 8x8: K=4 width 32, and levels of 4x4 places with 4 channels and 2x2 with 8.
    def network(channels: int) -> int:
        return 9 * (channels // 2) * 32 + 32 * 32 + 9 * 32 * channels + channels**2

    multiplications = 4 * (16 * network(4) + 4 * network(8)) + 16 * 9 * 2 * 4
    for file in bundle.manifest.files:
        assert file.operations == 2 * multiplications, file.name
        assert file.nodes == len(onnx.load(bundle.path / file.name).graph.node)


def test_calibration_is_the_scores_of_the_validation_images_with_the_default_seed(
    bundle: Bundle, images: ImageData
) -> None:
    calibration = list(bundle.manifest.calibration.bits_per_dim)
    assert calibration == sorted(calibration)
    assert len(calibration) == len(images.validation) == 179
    engine = Engine(bundle, RuntimeConfig(device="cpu"))
    forward = engine.forward(images.validation, dequantization_noise(0, images.validation))
    np.testing.assert_allclose(calibration, np.sort(bits_per_dim(forward.log_likelihood, 64)), rtol=1e-6)
    assert bundle.manifest.calibration.data == "digits"
    # Scored once more with other noise, in training: the mean differs by little.
    metrics = bundle.manifest.training.metrics
    assert np.mean(calibration) == pytest.approx(metrics["validation_bits_per_dim"], abs=0.02)
