"""The manifest of a bundle: what it states about the model, its graphs, its verification and its scores."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from glowserve_training.checkpoint import Checkpoint, load_checkpoint

from glowserve.images import UInt8Array
from glowserve.likelihood import bits_per_dim
from glowserve.runtime.engine import Engine
from glowserve.runtime.randomness import dequantization_noise
from glowserve.runtime.repository import Bundle
from glowserve.v1 import manifest_pb2


@pytest.fixture(scope="module")
def trained_checkpoint(checkpoint: Path) -> Checkpoint:
    return load_checkpoint(checkpoint)


def test_it_describes_image_and_flow(bundle: Bundle, trained_checkpoint: Checkpoint) -> None:
    manifest = bundle.manifest
    assert manifest.format_version == 2
    assert (manifest.model, manifest.version) == ("digits", 1)
    assert manifest.image == manifest_pb2.ImageSpec(height=8, width=8, channels=1, n_bits=4, latent_size=64)
    assert manifest.flow == manifest_pb2.Flow(
        levels=2,
        steps_per_level=4,
        width=32,
        coupling="affine",
        parametrization="qlu",
        dequantization="variational",
        preprocessing="logit",
        coupling_scale="tanh",
        checkerboards=4,
        coupling_actnorm=True,
        precision="fp32",
        parameters=sum(parameter.numel() for parameter in trained_checkpoint.model.parameters()),
    )
    assert manifest.preparation.filter == trained_checkpoint.data.preparation.filter
    assert manifest.randomness == manifest_pb2.RANDOMNESS_VERSION_PHILOX_BOX_MULLER_REDRAWN
    # A service that does not know the version could not read its name.
    assert json.loads((bundle.path / "manifest.json").read_text())["randomness"] == 2
    assert 0 < manifest.created_at.ToSeconds() <= time.time()


def test_it_has_length_and_hash_of_each_file(bundle: Bundle) -> None:
    files = {file.name: file for file in bundle.manifest.files}
    graphs = {"forward.onnx", "reverse.onnx", "explain.onnx"}
    assert files.keys() == graphs | {"explain.npy", "calibration.npz", "flow.json"}
    for name, file in files.items():
        data = (bundle.path / name).read_bytes()
        assert file.size == len(data)
        assert file.sha256 == hashlib.sha256(data).hexdigest()


def test_it_says_how_the_model_was_trained_and_with_which_tools(
    bundle: Bundle, trained_checkpoint: Checkpoint
) -> None:
    training = bundle.manifest.training
    assert (training.data, training.steps) == ("digits", trained_checkpoint.training.steps)
    assert training.images_seen == trained_checkpoint.training.images_seen == 32 * training.steps
    assert (training.seed, training.split_seed) == (0, 0)
    assert dict(training.metrics) == trained_checkpoint.training.metrics
    assert training.metrics.keys() >= {"validation_bits_per_dim", "test_bits_per_dim"}
    assert bundle.manifest.tools.keys() >= {"torch", "onnx", "numpy"}
    assert all(bundle.manifest.tools.values())
    assert bundle.manifest.glowserve_version


def test_it_has_every_value_of_the_verification_with_its_bound(bundle: Bundle) -> None:
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
        "samples at temperature 1, not finite",
    }
    for name, bound in bounds.items():
        assert checks[name].value <= bound, name
    assert checks["worst condition number"].value > 1
    assert 0 < checks["log-likelihood, relative error"].value < 2e-6
    assert 0 < checks["round trip, farthest from what was encoded"].value < 0.01
    for name in ("worst condition number", "worst |W W^-1 - I|"):
        assert checks[name].layer.startswith("level")
    assert bundle.manifest.verification.images == 128
    assert bundle.manifest.verification.device == "cpu"


def test_it_has_the_number_of_images_of_every_value(bundle: Bundle) -> None:
    images = {check.name: check.images for check in bundle.manifest.verification.checks}
    assert images == {
        **{"worst condition number": 0, "worst |W W^-1 - I|": 0},
        **{"log-likelihood, relative error": 128, "log-likelihood, error in bits/dim": 128},
        **{"round trip, values changed": 128, "round trip, farthest from what was encoded": 128},
        "round trip with random noise, values changed": 128,
        "decoding, error in grey values": 32,
        "decoding samples at temperature 1, error in grey values": 4,
        "samples at temperature 1, not finite": 32,
    }


def test_it_has_every_matrix_and_the_counts_of_out_of_distribution_images(bundle: Bundle) -> None:
    verification = bundle.manifest.verification
    checks = {check.name: check for check in verification.checks}
    assert [step.step for step in verification.steps] == [
        f"level{i}.step{k}" for i in (1, 2) for k in (1, 2, 3, 4)
    ]
    worst = max(verification.steps, key=lambda step: step.condition_number)
    assert checks["worst condition number"].layer == worst.step
    assert checks["worst condition number"].value == worst.condition_number
    assert checks["worst |W W^-1 - I|"].value == max(step.residual for step in verification.steps)
    counts = {unseen.kind: unseen for unseen in verification.unseen}
    assert list(counts) == ["noise", "constant", "inverted", "checkerboard"]
    for unseen in counts.values():
        assert 0 <= unseen.returned <= unseen.finite <= unseen.images
        assert unseen.images
    assert counts["inverted"].finite


def test_it_has_the_operations_and_nodes_of_each_graph(bundle: Bundle) -> None:
    # Digits are 8x8, K=4, width 32: level 1 has 4 channels at 4x4 positions, level 2 has 8 at 2x2.
    def network(inputs: int, outputs: int) -> int:
        return 9 * inputs * 32 + 32 * 32 + 9 * 32 * outputs

    def step(channels: int) -> int:
        return network(channels // 2, channels) + channels**2

    both = 4 * 64 * network(1, 2) + 4 * (16 * step(4) + 4 * step(8)) + 16 * 9 * 2 * 4
    multiplications = {"forward.onnx": both + 4 * 16 * network(2 + 4, 4), "reverse.onnx": both}
    for file in bundle.manifest.files[:2]:
        assert file.operations == 2 * multiplications[file.name], file.name
        assert file.nodes == len(onnx.load(bundle.path / file.name).graph.node)


def test_percentiles_are_the_scores_of_the_calibration_images_with_the_default_seed(
    bundle: Bundle, engine: Engine, calibration: UInt8Array
) -> None:
    known = list(bundle.manifest.calibration.bits_per_dim)
    assert known == sorted(known)
    assert len(known) == len(calibration) == 90
    forward = engine.forward(calibration, dequantization_noise(0, calibration))
    np.testing.assert_allclose(known, np.sort(bits_per_dim(forward.log_likelihood, 64)), rtol=1e-6)
    assert bundle.manifest.calibration.data == "digits"
    # Training scored as many others. Over images, the standard deviation of the difference is 0.07 bits/dim.
    metrics = bundle.manifest.training.metrics
    assert np.mean(known) == pytest.approx(metrics["validation_bits_per_dim"], abs=0.25)
