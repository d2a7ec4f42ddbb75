"""Folding a model of glowserve: the folded model, in the NumPy interpreter, computes what PyTorch does in float64."""

from __future__ import annotations

import copy
import math
import re

import numpy as np
import pytest
import torch
from glowserve_export.errors import NotInvertibleError
from glowserve_export.folded import FoldedGlow, condition_number
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_training.model import Glow

from tests.export import interpreter
from tests.export.models import random_glow, random_images

EXACT = {"rtol": 1e-12, "atol": 1e-11}


def test_log_likelihoods_are_those_of_pytorch(
    case_model: Glow, case_glow: FoldedGlow, rng: np.random.Generator
) -> None:
    images = random_images(rng, case_glow, 3)
    noise = rng.random(images.shape)
    expected = case_model.log_prob(torch.from_numpy(images), torch.from_numpy(noise)).numpy()
    np.testing.assert_allclose(
        interpreter.forward(case_glow, images, noise).log_likelihood, expected, **EXACT
    )
    assert np.abs(expected).min() > 1


def test_latents_are_those_of_pytorch(
    case_model: Glow, case_glow: FoldedGlow, rng: np.random.Generator
) -> None:
    images = random_images(rng, case_glow, 3)
    expected = case_model.encode(torch.from_numpy(images)).numpy()
    latent = interpreter.forward(case_glow, images, np.full(images.shape, 0.5)).latent
    np.testing.assert_allclose(latent, expected, **EXACT)


def test_decoded_pixels_are_those_of_pytorch(
    case_model: Glow, case_glow: FoldedGlow, rng: np.random.Generator
) -> None:
    latent = rng.standard_normal((3, case_glow.dimensions))
    expected = case_model.pixels(torch.from_numpy(latent)).numpy()
    # PyTorch uses Q^T for the inverse of an orthogonal Q, whose weights are float32: Q^T Q differs from I by rounding.
    error = 1e-3 if case_model.config.parametrization in ("orthogonal", "qlu") else 1e-10
    pixels = interpreter.reverse(case_glow, latent)
    np.testing.assert_allclose(pixels, expected, rtol=error, atol=error)


def test_the_folded_model_inverts_itself(
    case_model: Glow, case_glow: FoldedGlow, rng: np.random.Generator
) -> None:
    images = random_images(rng, case_glow, 2)
    noise = np.full(images.shape, 0.5)
    latent = interpreter.forward(case_glow, images, noise).latent
    dequantized = case_model.dequantize(torch.from_numpy(images), torch.from_numpy(noise))
    pixels = interpreter.reverse(case_glow, latent)
    np.testing.assert_allclose(pixels, dequantized.pixels().numpy(), rtol=0, atol=1e-9)


def test_every_matrix_has_its_inverse(case_glow: FoldedGlow) -> None:
    for name, step in case_glow.named_steps():
        x = np.linspace(-1, 1, step.channels)
        y = step.matrix @ x + step.bias
        np.testing.assert_allclose(step.inverse_matrix @ y + step.inverse_bias, x, atol=1e-12, err_msg=name)


def test_latent_shapes_are_those_of_the_model(case_model: Glow, case_glow: FoldedGlow) -> None:
    assert case_glow.latent_shapes() == case_model.latent_shapes()
    assert sum(math.prod(shape) for shape in case_glow.latent_shapes()) == case_glow.dimensions


@pytest.mark.parametrize("coupling", ["affine", "additive"])
@pytest.mark.parametrize("coupling_actnorm", [False, True])
@pytest.mark.parametrize("parametrization", ["qlu", "lu", "orthogonal", "plain"])
def test_every_parametrization_and_network_is_folded(
    parametrization: str, coupling_actnorm: bool, coupling: str, rng: np.random.Generator
) -> None:
    model = random_glow(
        levels=2, parametrization=parametrization, coupling_actnorm=coupling_actnorm, coupling=coupling
    )
    assert coupling_actnorm == any("network.0.actnorm" in name for name, _ in model.named_parameters())
    glow = fold_glow(model)
    images = random_images(rng, glow, 2)
    noise = rng.random(images.shape)
    expected = model.double().log_prob(torch.from_numpy(images), torch.from_numpy(noise)).detach().numpy()
    log_likelihood = interpreter.forward(glow, images, noise).log_likelihood
    np.testing.assert_allclose(log_likelihood, expected, rtol=1e-11)
    latent = rng.standard_normal((2, 64))
    expected = model.pixels(torch.from_numpy(latent)).detach().numpy()
    error = 1e-3 if parametrization in ("orthogonal", "qlu") else 1e-10  # as above
    pixels = interpreter.reverse(glow, latent)
    np.testing.assert_allclose(pixels, expected, rtol=error, atol=error)


def test_all_log_determinants_of_an_additive_flow_of_one_level_are_in_the_constant() -> None:
    model = random_glow(levels=1, coupling="additive", n_bits=5).double()
    with torch.no_grad():
        _, log_det = model(torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    expected = float(log_det) - model.config.dimensions * 5 * math.log(2)
    assert fold_glow(model).log_det_constant == pytest.approx(expected, rel=1e-12)


def test_dequantization_is_folded_if_it_is_variational() -> None:
    assert fold_glow(random_glow()).dequantization is None
    folded = fold_glow(random_glow(dequantization="variational", channels=3)).dequantization
    assert folded is not None
    assert len(folded.couplings) == 4
    for coupling in folded.couplings:
        assert [conv.weight.shape for conv in coupling.network] == [
            (6, 18, 3, 3),
            (6, 6, 1, 1),
            (12, 6, 3, 3),
        ]


def test_folding_does_not_change_the_model() -> None:
    model = random_glow(levels=2)
    before = copy.deepcopy(model.state_dict())
    fold_glow(model)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "weight",
    [
        "levels.0.steps.1.actnorm.log_scale",
        "levels.1.steps.0.conv1x1.upper",
        "levels.0.steps.0.coupling.network.2.conv.bias",
        "levels.0.prior.network.conv.weight",
        "levels.1.prior.mean",
        "dequantization.couplings.2.network.4.conv.bias",
    ],
)
def test_a_weight_that_is_not_finite_is_refused_by_name(weight: str, value: float) -> None:
    model = random_glow(levels=2, dequantization="variational")
    model.state_dict()[weight].view(-1)[0] = value
    with pytest.raises(NotInvertibleError, match=re.escape(f"weight {weight} is not finite")):
        fold_glow(model)


def _with_condition(model: Glow, condition: float) -> Glow:
    """The model with a matrix of that condition number in step 2 of level 1."""
    matrix = model.levels[0].steps[1].conv1x1.matrix  # type: ignore[union-attr, index]
    u, _, vh = torch.linalg.svd(matrix.detach().double())
    values = torch.logspace(0, -math.log10(condition), len(u), dtype=torch.float64)
    with torch.no_grad():
        matrix.copy_(u @ torch.diag(values) @ vh)
    return model


def test_a_singular_matrix_is_refused_with_its_step_and_condition_number() -> None:
    model = random_glow(levels=2, parametrization="plain")
    with torch.no_grad():
        model.levels[1].steps[0].conv1x1.matrix.zero_()  # type: ignore[union-attr, index]
    with pytest.raises(NotInvertibleError, match=r"level2\.step1: .*condition number inf.*bound is 1e\+06"):
        fold_glow(model)


def test_a_nearly_singular_matrix_is_refused_with_its_step_and_condition_number() -> None:
    model = _with_condition(random_glow(parametrization="plain", levels=2), 1e8)
    with pytest.raises(NotInvertibleError, match=r"level1\.step2: .*condition number [0-9.]+e\+0[78]"):
        fold_glow(model)


def test_an_ill_conditioned_matrix_within_the_bound_is_inverted() -> None:
    glow = fold_glow(_with_condition(random_glow(parametrization="plain", levels=2), 1e4))
    step = dict(glow.named_steps())["level1.step2"]
    np.testing.assert_allclose(step.matrix @ step.inverse_matrix, np.eye(4), atol=1e-10)


def test_an_orthogonal_convolution_has_condition_number_1() -> None:
    model = random_glow(levels=2, parametrization="orthogonal")
    with torch.no_grad():
        for step in model.flow_steps():
            step.actnorm.log_scale.zero_()
    for name, folded in fold_glow(model).named_steps():
        assert condition_number(folded.matrix) == pytest.approx(1, abs=1e-5), name
        np.testing.assert_allclose(folded.inverse_matrix, folded.matrix.T, atol=1e-6, err_msg=name)
