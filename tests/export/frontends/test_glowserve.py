"""From PyTorch to FoldedGlow, measured with a NumPy interpreter of the latter. Everything is float64."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from glowserve_export.folded import (
    FoldedConv,
    FoldedStep,
    condition_number,
    inversion_residual,
)
from glowserve_export.errors import NotInvertibleError
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_training.model import Glow

RandomGlow = Callable[..., Glow]
EXACT = {"rtol": 1e-12, "atol": 1e-11}


def _images(rng: np.random.Generator, model: Glow, n: int) -> np.ndarray:
    size = model.config.image_size
    return rng.integers(0, 256, (n, size, size, model.config.channels), np.uint8)


@pytest.mark.parametrize("n", [1, 3])
def test_a_baked_model_gives_the_log_likelihoods_of_pytorch(
    case: dict[str, Any], n: int, random_glow: RandomGlow, interpreter: Any, rng: np.random.Generator
) -> None:
    model = random_glow(**case)
    images = _images(rng, model, n)
    noise = rng.random(images.shape)
    expected = model.double().log_prob(torch.from_numpy(images), torch.from_numpy(noise)).detach().numpy()
    ours = interpreter.forward(fold_glow(random_glow(**case)), images, noise).log_likelihood
    np.testing.assert_allclose(ours, expected, **EXACT)
    assert np.abs(expected).min() > 1


@pytest.mark.parametrize("n", [1, 3])
def test_a_baked_model_gives_the_latents_of_pytorch(
    case: dict[str, Any], n: int, random_glow: RandomGlow, interpreter: Any, rng: np.random.Generator
) -> None:
    model = random_glow(**case)
    images = _images(rng, model, n)
    expected = model.double().encode(torch.from_numpy(images)).detach().numpy()
    ours = interpreter.forward(fold_glow(random_glow(**case)), images, np.full(images.shape, 0.5)).latent
    np.testing.assert_allclose(ours, expected, **EXACT)


@pytest.mark.parametrize("n", [1, 3])
def test_a_baked_model_decodes_as_pytorch_does(
    case: dict[str, Any], n: int, random_glow: RandomGlow, interpreter: Any, rng: np.random.Generator
) -> None:
    model = random_glow(**case)
    latent = rng.standard_normal((n, model.config.dimensions))
    y, _ = model.double().inverse(torch.from_numpy(latent))
    expected = (y.detach().permute(0, 2, 3, 1).numpy() + 0.5) * 2**model.config.n_bits
    ours = interpreter.reverse(fold_glow(random_glow(**case)), latent)
    # W^T, which PyTorch takes for W^-1, is that within the rounding of the weights, which are float32.
    error = 1e-3 if case["parametrization"] == "orthogonal" else 1e-10
    np.testing.assert_allclose(ours, expected, rtol=error, atol=error)


def test_the_interpreter_undoes_itself(
    case: dict[str, Any], random_glow: RandomGlow, interpreter: Any, rng: np.random.Generator
) -> None:
    glow = fold_glow(random_glow(**case))
    images = _images(rng, random_glow(**case), 2)
    latent = interpreter.forward(glow, images, np.full(images.shape, 0.5)).latent
    noise = torch.full(images.shape, 0.5, dtype=torch.float64)
    y, _ = random_glow(**case).double().dequantize(torch.from_numpy(images), noise)
    pixels = (y.detach().permute(0, 2, 3, 1).numpy() + 0.5) * 2**glow.n_bits
    np.testing.assert_allclose(interpreter.reverse(glow, latent), pixels, rtol=0, atol=1e-9)


def test_log_determinants_of_an_additive_flow_of_one_level_are_all_in_the_constant(
    random_glow: RandomGlow,
) -> None:
    model = random_glow(levels=1, coupling="additive", n_bits=5).double()
    with torch.no_grad():
        _, log_det = model(torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    expected = float(log_det) - model.config.dimensions * 5 * math.log(2)
    assert fold_glow(model).log_det_constant == pytest.approx(expected, rel=1e-12)


def test_every_matrix_comes_with_its_inverse(case: dict[str, Any], random_glow: RandomGlow) -> None:
    for name, step in fold_glow(random_glow(**case)).named_steps():
        x = np.linspace(-1, 1, step.channels)
        y = step.matrix @ x + step.bias
        np.testing.assert_allclose(step.inverse_matrix @ y + step.inverse_bias, x, atol=1e-12, err_msg=name)


def test_steps_are_named_by_level_and_place_from_the_pixels_on(random_glow: RandomGlow) -> None:
    names = [name for name, _ in fold_glow(random_glow(levels=2, steps_per_level=2)).named_steps()]
    assert names == ["level1.step1", "level1.step2", "level2.step1", "level2.step2"]


def test_latent_shapes_are_those_of_the_model(case: dict[str, Any], random_glow: RandomGlow) -> None:
    model = random_glow(**case)
    glow = fold_glow(model)
    assert glow.latent_shapes() == model.latent_shapes()
    assert sum(math.prod(shape) for shape in glow.latent_shapes()) == glow.dimensions


def test_baking_leaves_the_model_as_it_was(random_glow: RandomGlow) -> None:
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
    ],
)
def test_a_weight_that_is_not_finite_is_refused_by_name(
    weight: str, value: float, random_glow: RandomGlow
) -> None:
    model = random_glow(levels=2)
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


def test_a_singular_matrix_is_refused_with_its_place_and_condition_number(random_glow: RandomGlow) -> None:
    model = random_glow(levels=2, parametrization="plain")
    with torch.no_grad():
        model.levels[1].steps[0].conv1x1.matrix.zero_()  # type: ignore[union-attr, index]
    with pytest.raises(NotInvertibleError, match=r"level2\.step1: .*condition number inf.*bound is 1e\+06"):
        fold_glow(model)


def test_a_nearly_singular_matrix_is_refused_with_its_place_and_condition_number(
    random_glow: RandomGlow,
) -> None:
    model = _with_condition(random_glow(parametrization="plain", levels=2), 1e8)
    with pytest.raises(NotInvertibleError, match=r"level1\.step2: .*condition number [0-9.]+e\+0[78]"):
        fold_glow(model)


def test_an_ill_conditioned_matrix_within_the_bound_is_inverted(random_glow: RandomGlow) -> None:
    glow = fold_glow(_with_condition(random_glow(parametrization="plain", levels=2), 1e4))
    step = dict(glow.named_steps())["level1.step2"]
    np.testing.assert_allclose(step.matrix @ step.inverse_matrix, np.eye(4), atol=1e-10)


@pytest.mark.parametrize("coupling", ["affine", "additive"])
@pytest.mark.parametrize("coupling_actnorm", [False, True])
@pytest.mark.parametrize("parametrization", ["lu", "orthogonal", "plain"])
def test_every_parametrization_and_network_is_baked(
    parametrization: str,
    coupling_actnorm: bool,
    coupling: str,
    random_glow: RandomGlow,
    interpreter: Any,
    rng: np.random.Generator,
) -> None:
    model = random_glow(
        levels=2, parametrization=parametrization, coupling_actnorm=coupling_actnorm, coupling=coupling
    )
    assert coupling_actnorm == any("network.0.actnorm" in name for name, _ in model.named_parameters())
    glow = fold_glow(model)
    images = _images(rng, model, 2)
    noise = rng.random(images.shape)
    ours = interpreter.forward(glow, images, noise)
    model.double()
    expected = model.log_prob(torch.from_numpy(images), torch.from_numpy(noise)).detach().numpy()
    np.testing.assert_allclose(ours.log_likelihood, expected, rtol=1e-11)
    latent = rng.standard_normal((2, 64))
    y, _ = model.inverse(torch.from_numpy(latent))
    pixels = (y.detach().permute(0, 2, 3, 1).numpy() + 0.5) * 256
    error = 1e-3 if parametrization == "orthogonal" else 1e-10  # as above
    np.testing.assert_allclose(interpreter.reverse(glow, latent), pixels, rtol=error, atol=error)


def test_an_orthogonal_convolution_has_condition_number_1(random_glow: RandomGlow) -> None:
    model = random_glow(levels=2, parametrization="orthogonal")
    with torch.no_grad():
        for step in model.flow_steps():
            step.actnorm.log_scale.zero_()
    for name, step in fold_glow(model).named_steps():
        assert condition_number(step.matrix) == pytest.approx(1, abs=1e-5), name
        np.testing.assert_allclose(step.inverse_matrix, step.matrix.T, atol=1e-6, err_msg=name)


def test_the_networks_of_a_dequantization_are_baked_and_those_of_a_uniform_one_are_none(
    random_glow: RandomGlow,
) -> None:
    assert fold_glow(random_glow()).dequantization is None
    baked = fold_glow(random_glow(dequantization="variational", channels=3)).dequantization
    assert baked is not None
    assert len(baked.networks) == 4
    for network in baked.networks:
        assert [conv.weight.shape for conv in network] == [(6, 18, 3, 3), (6, 6, 1, 1), (12, 6, 3, 3)]


def _step(matrix: np.ndarray, inverse: np.ndarray) -> FoldedStep:
    conv = FoldedConv(np.zeros((1, 1, 1, 1)), np.zeros(1))
    return FoldedStep(matrix, np.zeros(2), inverse, np.zeros(2), (conv, conv, conv), affine=False)


def test_the_condition_number_is_the_ratio_of_singular_values() -> None:
    assert condition_number(np.diag([8.0, -2.0])) == pytest.approx(4)
    assert condition_number(np.array([[1.0, 1.0], [1.0, 1.0]])) > 1e15


def test_the_inversion_residual_is_that_of_float32() -> None:
    assert inversion_residual(_step(np.eye(2), np.eye(2))) == 0
    # A tenth is not a float32: the product is off by the rounding of both.
    residual = inversion_residual(_step(np.eye(2) * 0.1, np.eye(2) * (1 / 0.1)))
    assert 1e-9 < residual < 1e-7
    assert inversion_residual(_step(np.eye(2), np.eye(2) * 1.25)) == pytest.approx(0.25)
