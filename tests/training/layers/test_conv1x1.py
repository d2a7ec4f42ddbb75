"""The invertible 1x1 convolution in all parametrizations; `test_qlu` has more of the default one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from glowserve_training.layers import (
    InvertibleConv1x1,
    LUConv1x1,
    OrthogonalConv1x1,
    PlainConv1x1,
    QLUConv1x1,
)
from glowserve_training.layers.conv1x1 import LOG_S_BOUND

from tests.training.conftest import Perturb
from tests.training.layers.conftest import Prepare
from tests.training.models import in_double


@pytest.mark.parametrize("channels", [1, 2, 3, 12, 48])
@pytest.mark.parametrize("parametrization", [PlainConv1x1, LUConv1x1, OrthogonalConv1x1, QLUConv1x1])
def test_a_1x1_convolution_is_initialized_as_an_orthogonal_matrix(
    parametrization: Callable[[int], InvertibleConv1x1], channels: int
) -> None:
    conv = parametrization(channels)
    weight = conv.weight().detach()

    torch.testing.assert_close(weight @ weight.T, torch.eye(channels), rtol=0, atol=1e-5)
    torch.testing.assert_close(conv.log_abs_det().detach(), torch.tensor(0.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 3, 12, 48])
@pytest.mark.parametrize("parametrization", [PlainConv1x1, LUConv1x1, QLUConv1x1])
def test_the_log_determinant_of_a_1x1_convolution_is_that_of_its_matrix(
    parametrization: Callable[[int], InvertibleConv1x1],
    channels: int,
    prepared: Prepare,
) -> None:
    conv = in_double(parametrization, channels)
    prepared(conv)

    expected = torch.linalg.slogdet(conv.weight()).logabsdet

    assert expected.abs() > 1e-3  # no longer orthogonal
    torch.testing.assert_close(conv.log_abs_det(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("parametrization", [PlainConv1x1, LUConv1x1, OrthogonalConv1x1, QLUConv1x1])
def test_stacked_1x1_convolutions_equal_the_single_ones(
    parametrization: Callable[[int], InvertibleConv1x1], prepared: Prepare
) -> None:
    convs = [parametrization(6) for _ in range(3)]
    for conv in convs:
        prepared(conv)

    weights, log_abs_dets = convs[0].stacked(convs)

    for conv, weight, log_abs_det in zip(convs, weights, log_abs_dets, strict=True):
        torch.testing.assert_close(weight, conv.weight(), rtol=0, atol=1e-12)
        torch.testing.assert_close(log_abs_det, conv.log_abs_det(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("extreme", [1e6, -1e6])
def test_no_parameter_value_makes_an_lu_convolution_singular(extreme: float, dtype: torch.dtype) -> None:
    conv = LUConv1x1(4).to(dtype)
    with torch.no_grad():
        conv.unbounded_log_s.fill_(extreme)

    determinant = torch.linalg.det(conv.weight()).detach()

    assert determinant.isfinite()
    assert determinant != 0
    log_abs_det = float(conv.log_abs_det().detach())
    assert abs(log_abs_det) == pytest.approx(4 * LOG_S_BOUND)
    assert log_abs_det == pytest.approx(float(determinant.abs().log()), rel=1e-4)


def test_the_permutation_and_the_signs_of_an_lu_convolution_are_not_trained(
    generator: torch.Generator,
) -> None:
    conv = LUConv1x1(6)
    assert set(dict(conv.named_parameters())) == {"lower", "upper", "unbounded_log_s"}
    permutation, sign_s, weight = (
        conv.permutation.clone(),
        conv.sign_s.clone(),
        conv.weight().detach().clone(),
    )
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)

    y, log_det = conv(torch.randn(3, 6, 4, 4, generator=generator))
    (y.square().mean() - log_det.mean()).backward()
    optimizer.step()

    assert torch.equal(conv.permutation, permutation)
    assert torch.equal(conv.sign_s, sign_s)
    assert (conv.weight() - weight).abs().max() > 1e-3
    assert torch.linalg.det(conv.weight()).sign() == torch.linalg.det(weight).sign()


@pytest.mark.parametrize("channels", [1, 2, 3, 12, 48])
def test_an_orthogonal_convolution_has_condition_number_1_and_its_transpose_as_inverse(
    channels: int, prepared: Prepare, generator: torch.Generator
) -> None:
    conv = in_double(OrthogonalConv1x1, channels)
    assert isinstance(conv, OrthogonalConv1x1)
    start = conv.weight().detach()
    prepared(conv)
    weight = conv.weight().detach()
    y = torch.randn(channels, 7, generator=generator, dtype=torch.float64)

    if channels > 1:
        assert (weight - start).abs().max() > 0.05
    assert np.linalg.cond(weight.numpy()) == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(conv.apply_inverse(y).detach(), weight.T @ y, rtol=0, atol=1e-12)
    torch.testing.assert_close(weight @ weight.T @ y, y, rtol=0, atol=1e-9)
    assert conv.log_abs_det() == 0


def test_an_orthogonal_convolution_stays_orthogonal_in_training(generator: torch.Generator) -> None:
    conv = OrthogonalConv1x1(6)
    start = conv.weight().detach().clone()
    optimizer = torch.optim.Adam(conv.parameters(), lr=0.1)
    x, target = (torch.randn(4, 6, 2, 2, generator=generator) for _ in range(2))
    losses = []

    for _ in range(50):
        loss = (conv(x)[0] - target).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    weight = conv.weight().detach()
    assert losses[-1] < 0.9 * losses[0]
    assert (weight - start).abs().max() > 0.1
    torch.testing.assert_close(weight @ weight.T, torch.eye(6), rtol=0, atol=1e-5)


def test_an_orthogonal_convolution_is_loaded_as_it_was_saved(
    perturb: Perturb, generator: torch.Generator
) -> None:
    conv, loaded = OrthogonalConv1x1(5), OrthogonalConv1x1(5)
    perturb(conv)
    assert not torch.equal(loaded.weight(), conv.weight())

    loaded.load_state_dict(conv.state_dict())

    assert torch.equal(loaded.weight(), conv.weight())


def test_only_the_triangles_of_an_lu_convolution_are_used(generator: torch.Generator) -> None:
    conv = LUConv1x1(5)
    before = conv.weight().detach().clone()
    with torch.no_grad():
        conv.lower += torch.randn(5, 5, generator=generator).triu()
        conv.upper += torch.randn(5, 5, generator=generator).tril()

    assert torch.equal(conv.weight(), before)
