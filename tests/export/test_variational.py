"""A model with variational dequantization, from its checkpoint to a served bundle."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from glowserve_export.bundle import export
from glowserve_export.dequantization import FoldedDequantization
from glowserve_export.evaluation import EvaluatedBundle
from glowserve_export.source import Source, load_glowserve_checkpoint
from glowserve_training.checkpoint import load_checkpoint, save_checkpoint
from glowserve_training.evaluation import (
    Decoded,
    EvaluatedGlow,
    evaluate,
    measure_round_trip,
)
from glowserve_training.model import Glow, GlowConfig

import glowserve
from glowserve.images import UInt8Array
from glowserve.runtime.randomness import dequantization_noise
from glowserve.runtime.repository import Bundle, newest_bundle
from tests.export.unpublished import add_to_constant, verification_error
from tests.servers import RunServer


@pytest.fixture(scope="module", params=["sigmoid", "tanh"])
def model(request: pytest.FixtureRequest, digits: UInt8Array) -> Glow:
    """A model of digits that is initialized but not trained, with a dequantization far from the identity."""
    config = GlowConfig(
        image_size=8,
        channels=1,
        n_bits=4,
        levels=2,
        steps_per_level=2,
        width=16,
        parametrization="orthogonal",
        coupling_actnorm=True,
        dequantization="variational",
        pixel_width=16,
        coupling_scale=request.param,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = Glow(config).train()
        images = torch.from_numpy(digits[:64])
        model.log_prob(images, torch.rand(images.shape))  # initializes the actnorms
        for name, weight in model.state_dict().items():
            if re.fullmatch(r".*network\.4\.conv\.(weight|bias)", name):
                size = (
                    (0.2 if request.param == "sigmoid" else 0.07)
                    if name.startswith("dequantization")
                    else 0.02
                )
                weight.add_(size * torch.randn(weight.shape))
    return model.eval()


@pytest.fixture(scope="module")
def variational_checkpoint(model: Glow, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint, with data and training record of the shared one."""
    path = tmp_path_factory.mktemp("variational") / "model.ckpt"
    save_checkpoint(replace(load_checkpoint(checkpoint), model=model), path)
    return path


@pytest.fixture(scope="module")
def variational_source(variational_checkpoint: Path) -> Source:
    return load_glowserve_checkpoint(variational_checkpoint)


@pytest.fixture(scope="module")
def variational_repository(variational_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with that model as `variational`."""
    path = tmp_path_factory.mktemp("models")
    export(variational_source, path / "variational")
    return path


@pytest.fixture(scope="module")
def variational_bundle(variational_repository: Path) -> Bundle:
    return newest_bundle(variational_repository / "variational")


@pytest.fixture(scope="module")
def loaded(variational_checkpoint: Path) -> Glow:
    """The model as it was read from its checkpoint."""
    return load_checkpoint(variational_checkpoint).model


def test_it_is_verified_and_its_manifest_says_what_it_is(variational_bundle: Bundle) -> None:
    manifest = variational_bundle.manifest
    assert manifest.flow.parametrization == "orthogonal"
    assert manifest.flow.dequantization == "variational"
    assert manifest.flow.coupling_actnorm
    checks = {check.name: check for check in manifest.verification.checks}
    assert 0 < checks["log-likelihood, relative error"].value < 2e-6
    assert checks["round trip, values changed"].value == 0
    # Measured from the centers of bins, this would be a tenth or more.
    assert 0 < checks["round trip, farthest from what was encoded"].value < 0.01


def test_noise_one_half_is_not_mapped_to_the_center_of_the_bin(
    variational_source: Source, digits: UInt8Array
) -> None:
    half = np.full(digits.shape, 0.5, np.float32)
    noise = variational_source.reference.dequantized(digits, half) - (digits >> 4)
    assert np.abs(noise - 0.5).max() > 0.1
    assert 0 < noise.min() < noise.max() < 1


def test_bundle_and_checkpoint_are_measured_alike(
    variational_bundle: Bundle, loaded: Glow, digits: UInt8Array
) -> None:
    ours = evaluate(EvaluatedBundle(variational_bundle, device="cpu"), digits, importance_samples=2)
    theirs = evaluate(EvaluatedGlow(loaded), digits, importance_samples=2)
    assert ours.bits_per_dim == pytest.approx(theirs.bits_per_dim, abs=1e-4)
    assert ours.constant_bits_per_dim == pytest.approx(theirs.constant_bits_per_dim, abs=1e-4)
    for our, their in zip(ours.levels, theirs.levels, strict=True):
        assert our.log_prior_bits_per_dim == pytest.approx(their.log_prior_bits_per_dim, abs=1e-4)
        assert our.log_det_bits_per_dim == pytest.approx(their.log_det_bits_per_dim, abs=1e-4)
    for measured in (ours.round_trip, theirs.round_trip):
        assert measured.images_exact == len(digits)
        assert 0 < measured.largest_error < 0.01


def test_bundle_and_checkpoint_dequantize_alike(
    variational_bundle: Bundle, loaded: Glow, digits: UInt8Array, rng: np.random.Generator
) -> None:
    noise = rng.random(digits.shape, np.float32)
    model = EvaluatedGlow(loaded)
    bundle = EvaluatedBundle(variational_bundle, device="cpu")
    dequantized = bundle.dequantize(digits, noise)
    learned = dequantized - (digits >> 4)
    assert 0 <= learned.min() < learned.max() <= 1
    assert np.abs(learned - noise).max() > 0.05
    np.testing.assert_allclose(model.dequantize(digits, noise), dequantized, atol=1e-4)
    np.testing.assert_allclose(
        model.encode(digits, noise), bundle.encode(digits, noise), rtol=1e-3, atol=1e-3
    )


def test_the_error_of_a_round_trip_is_measured_from_the_dequantized_value(
    loaded: Glow, digits: UInt8Array
) -> None:
    model = EvaluatedGlow(loaded)
    decode = model.decode

    def shifted(latent: np.ndarray) -> Decoded:
        decoded = decode(latent)
        return replace(decoded, pixels=decoded.pixels + np.float32(0.25))

    model.decode = shifted  # type: ignore[method-assign]
    assert measure_round_trip(model, digits).largest_error == pytest.approx(0.25, abs=0.01)


def test_it_is_served_with_the_likelihoods_of_pytorch_and_lossless(
    variational_repository: Path, variational_source: Source, run_server: RunServer, digits: UInt8Array
) -> None:
    expected = variational_source.reference.log_likelihood(digits, dequantization_noise(0, digits))
    with (
        run_server(repository=variational_repository) as server,
        glowserve.Client(f"127.0.0.1:{server.port}") as client,
    ):
        for model in (client, glowserve.open(variational_repository / "variational", device="cpu")):
            np.testing.assert_allclose(model.score(digits).log_likelihood, expected, rtol=1e-5)
            encodings = model.encode(digits)
            assert encodings.mismatched_values.sum() == 0
            decoded = model.decode(encodings.latents)
            np.testing.assert_array_equal(np.asarray(decoded) >> 4, digits >> 4)
            assert len(model.sample(2, temperature=0.7)) == 2


# Verification


@pytest.mark.parametrize(
    ("constant", "amount", "layer"),
    [
        ("dequantization.coupling1.conv1.weight", 0.5, "dequantization.coupling1"),
        ("dequantization.coupling2.conv2.bias", np.nan, "dequantization.coupling2"),
        ("dequantization.coupling3.conv3.weight", 0.5, "dequantization.coupling3"),
        ("dequantization.coupling4.conv3.bias", 0.1, "dequantization.coupling4"),
        ("bin.first_middle", 0.25, "dequantization.coupling1"),
        ("dequantization.constant", 0.1, "the log-determinants"),
        ("level1.step1.mix.bias", 0.5, "level1.step1"),
    ],
)
def test_a_wrong_number_is_found_in_its_layer(
    constant: str, amount: float, layer: str, variational_source: Source, digits: UInt8Array, tmp_path: Path
) -> None:
    text = verification_error(
        tmp_path,
        variational_source.reference,
        variational_source.glow,
        digits[:32],
        forward=add_to_constant(constant, amount),
    )
    assert text.startswith("log-likelihood, relative error is ")
    assert f"the layer to look at is {layer} of forward.onnx." in text


def _left_out(_: FoldedDequantization) -> None:
    return None


def _reversed(learned: FoldedDequantization) -> FoldedDequantization:
    return replace(learned, couplings=learned.couplings[::-1])


def _with_another_margin(learned: FoldedDequantization) -> FoldedDequantization:
    return replace(learned, margin=1e-3)


@pytest.mark.parametrize(
    ("change", "layer"),
    [
        (_left_out, "dequantization.coupling1"),
        (_reversed, "dequantization.coupling1"),
        (_with_another_margin, "dequantization.coupling1"),
    ],
)
def test_a_dequantization_that_is_folded_wrongly_is_found(
    change: Callable[[FoldedDequantization], FoldedDequantization | None],
    layer: str,
    variational_source: Source,
    digits: UInt8Array,
    tmp_path: Path,
) -> None:
    assert variational_source.glow.dequantization is not None
    glow = replace(variational_source.glow, dequantization=change(variational_source.glow.dequantization))
    text = verification_error(tmp_path, variational_source.reference, glow, digits[:32])
    assert text.startswith("log-likelihood, relative error is ")
    assert f"the layer to look at is {layer} of forward.onnx." in text
