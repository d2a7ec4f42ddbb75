"""Every layer is a bijector whose log-determinant is that of its Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from glowserve_training.layers import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    Bijector,
    HiddenConv2d,
    LUConv1x1,
    OrthogonalConv1x1,
    PlainConv1x1,
    Split,
    Squeeze,
    TopPrior,
    ZeroConv2d,
)
from glowserve_training.layers.conv1x1 import LOG_S_BOUND, InvertibleConv1x1
from glowserve_training.model import FlowStep, GlowConfig, Level
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

Perturb = Callable[..., None]
JacobianLogDet = Callable[[Bijector, Tensor], Tensor]


def config(coupling: str, parametrization: str) -> GlowConfig:
    return GlowConfig(
        image_size=8,
        channels=1,
        steps_per_level=2,
        width=6,
        coupling=coupling,
        parametrization=parametrization,
    )


def in_double(make: Callable[..., Bijector], *args: Any) -> Bijector:
    """A matrix that was made in float32 is orthogonal to 1e-7 only, in whatever precision it is used."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return make(*args)
    finally:
        torch.set_default_dtype(before)


BIJECTORS: dict[str, tuple[Callable[[int], Bijector], tuple[int, ...]]] = {
    "actnorm": (ActNorm, (1, 2, 3)),
    "plain conv": (PlainConv1x1, (1, 2, 3, 12)),
    "lu conv": (LUConv1x1, (1, 2, 3, 12)),
    "orthogonal conv": (lambda channels: in_double(OrthogonalConv1x1, channels), (1, 2, 3, 12)),
    "affine coupling": (lambda channels: AffineCoupling(channels, width=6), (2, 3, 5, 8)),
    "additive coupling": (lambda channels: AdditiveCoupling(channels, width=6), (2, 3, 5, 8)),
    "affine coupling with actnorm": (
        lambda channels: AffineCoupling(channels, width=6, actnorm=True),
        (2, 5),
    ),
    "additive coupling with actnorm": (
        lambda channels: AdditiveCoupling(channels, width=6, actnorm=True),
        (2, 5),
    ),
    "squeeze": (lambda _: Squeeze(), (1, 2, 3)),
    "split": (Split, (2, 4, 6)),
    "top prior": (TopPrior, (1, 3, 4)),
    "affine lu step": (lambda channels: FlowStep(channels, config("affine", "lu")), (2, 3, 8)),
    "additive plain step": (lambda channels: FlowStep(channels, config("additive", "plain")), (2, 3, 8)),
    "affine orthogonal step": (
        lambda channels: in_double(FlowStep, channels, config("affine", "orthogonal")),
        (2, 3, 8),
    ),
    "affine plain level": (lambda channels: Level(channels, config("affine", "plain"), top=False), (1, 2, 3)),
    "additive lu top": (lambda channels: Level(channels, config("additive", "lu"), top=True), (1, 2, 3)),
}
CASES = [
    pytest.param(make, channels, id=f"{name}-{channels}")
    for name, (make, several) in BIJECTORS.items()
    for channels in several
]


@pytest.fixture
def prepared(perturb: Perturb) -> Callable[[Bijector], Bijector]:
    """A layer in float64 that is past its data-dependent start and away from its initial weights."""

    def prepare(layer: Bijector) -> Bijector:
        layer = layer.double().eval()
        perturb(layer)
        return layer

    return prepare


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("make", "channels"), CASES)
def test_the_inverse_undoes_the_forward(
    make: Callable[[int], Bijector],
    channels: int,
    n: int,
    prepared: Callable[[Bijector], Bijector],
    generator: torch.Generator,
) -> None:
    layer = prepared(make(channels))
    x = torch.randn(n, channels, 4, 6, generator=generator, dtype=torch.float64)

    y, log_det = layer(x)
    back, inverse_log_det = layer.inverse(y)

    assert log_det.shape == inverse_log_det.shape == (n,)
    assert back.shape == x.shape
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("make", "channels"), CASES)
def test_the_log_determinant_is_that_of_the_jacobian(
    make: Callable[[int], Bijector],
    channels: int,
    n: int,
    prepared: Callable[[Bijector], Bijector],
    jacobian_log_det: JacobianLogDet,
    generator: torch.Generator,
) -> None:
    layer = prepared(make(channels))
    x = torch.randn(n, channels, 2, 4, generator=generator, dtype=torch.float64)

    _, log_det = layer(x)

    torch.testing.assert_close(log_det.detach(), jacobian_log_det(layer, x), rtol=0, atol=1e-6)


# ActNorm


@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_first_batch_leaves_an_actnorm_with_mean_0_and_variance_1(
    n: int, generator: torch.Generator
) -> None:
    actnorm = ActNorm(3).double()
    x = 5 + 3 * torch.randn(n, 3, 4, 4, generator=generator, dtype=torch.float64)

    y, _ = actnorm(x)

    variance, mean = torch.var_mean(y, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-9)
    torch.testing.assert_close(variance, torch.ones_like(variance), rtol=0, atol=1e-9)


def test_an_actnorm_takes_its_start_from_the_first_batch_alone(generator: torch.Generator) -> None:
    actnorm = ActNorm(3)
    actnorm(torch.randn(4, 3, 2, 2, generator=generator))
    before = [parameter.detach().clone() for parameter in actnorm.parameters()]

    actnorm(9 + torch.randn(4, 3, 2, 2, generator=generator))

    assert all(map(torch.equal, before, actnorm.parameters()))


def test_an_actnorm_of_a_batch_of_one_is_finite(generator: torch.Generator) -> None:
    actnorm = ActNorm(3)

    y, log_det = actnorm(torch.randn(1, 3, 4, 4, generator=generator))
    (y.square().mean() - log_det.mean()).backward()

    assert y.isfinite().all()
    assert log_det.isfinite().all()
    assert actnorm.bias.grad is not None
    assert actnorm.bias.grad.isfinite().all()
    assert actnorm.log_scale.grad is not None
    assert actnorm.log_scale.grad.isfinite().all()


def test_a_constant_channel_does_not_make_an_actnorm_infinite(generator: torch.Generator) -> None:
    actnorm = ActNorm(2).double()
    x = torch.randn(5, 2, 4, 4, generator=generator, dtype=torch.float64)
    x[:, 1] = 0.25

    y, log_det = actnorm(x)

    assert log_det.isfinite().all()
    torch.testing.assert_close(y[:, 1], torch.zeros_like(y[:, 1]), rtol=0, atol=1e-9)
    torch.testing.assert_close(y[:, 0].std(correction=0), torch.tensor(1.0).double(), rtol=0, atol=1e-9)


def test_what_differs_from_a_constant_first_batch_is_not_blown_up(generator: torch.Generator) -> None:
    actnorm = ActNorm(3)
    actnorm(torch.randn(1, 3, 1, 1, generator=generator))  # one place: every channel is constant

    y, _ = actnorm(torch.randn(1, 3, 1, 1, generator=generator))

    assert y.abs().max() < 10


def test_an_actnorm_is_not_initialized_in_evaluation_mode(generator: torch.Generator) -> None:
    actnorm = ActNorm(3).eval()
    x = 5 + torch.randn(4, 3, 2, 2, generator=generator)

    y, log_det = actnorm(x)

    assert torch.equal(y, x)
    assert torch.equal(log_det, torch.zeros(4))
    assert not actnorm.initialized
    actnorm.train()(x)
    assert actnorm.initialized


def test_the_inverse_of_an_actnorm_does_not_initialize_it(generator: torch.Generator) -> None:
    actnorm = ActNorm(3)

    actnorm.inverse(torch.randn(4, 3, 2, 2, generator=generator))

    assert not actnorm.initialized


def test_a_loaded_actnorm_is_not_initialized_again(generator: torch.Generator) -> None:
    trained = ActNorm(3)
    trained(torch.randn(4, 3, 2, 2, generator=generator))
    assert "initialized" in trained.state_dict()

    loaded = ActNorm(3)
    loaded.load_state_dict(trained.state_dict())
    loaded(9 + torch.randn(4, 3, 2, 2, generator=generator))

    assert torch.equal(loaded.bias, trained.bias)
    assert torch.equal(loaded.log_scale, trained.log_scale)


def test_an_actnorm_loaded_before_its_first_batch_still_waits_for_it(generator: torch.Generator) -> None:
    used = ActNorm(3)
    used(torch.randn(4, 3, 2, 2, generator=generator))
    used.load_state_dict(ActNorm(3).state_dict())

    y, _ = used(5 + torch.randn(4, 3, 2, 2, generator=generator))

    assert used.initialized
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)


# Invertible 1x1 convolutions


@pytest.mark.parametrize("channels", [1, 2, 3, 12, 48])
@pytest.mark.parametrize("parametrization", [PlainConv1x1, LUConv1x1, OrthogonalConv1x1])
def test_a_1x1_convolution_begins_as_an_orthogonal_matrix(
    parametrization: Callable[[int], InvertibleConv1x1], channels: int
) -> None:
    conv = parametrization(channels)
    weight = conv.weight().detach()

    torch.testing.assert_close(weight @ weight.T, torch.eye(channels), rtol=0, atol=1e-5)
    torch.testing.assert_close(conv.log_abs_det().detach(), torch.tensor(0.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 3, 12, 48])
@pytest.mark.parametrize("parametrization", [PlainConv1x1, LUConv1x1])
def test_the_log_determinant_of_a_1x1_convolution_is_that_of_its_matrix(
    parametrization: Callable[[int], InvertibleConv1x1],
    channels: int,
    prepared: Callable[[Bijector], Bijector],
) -> None:
    conv = parametrization(channels)
    prepared(conv)

    expected = torch.linalg.slogdet(conv.weight()).logabsdet

    assert expected.abs() > 1e-3  # no longer orthogonal
    torch.testing.assert_close(conv.log_abs_det(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("parametrization", [PlainConv1x1, LUConv1x1, OrthogonalConv1x1])
def test_the_1x1_convolutions_of_a_level_stacked_are_those_alone(
    parametrization: Callable[[int], InvertibleConv1x1], prepared: Callable[[Bijector], Bijector]
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
def test_no_parameter_makes_an_lu_convolution_singular(extreme: float, dtype: torch.dtype) -> None:
    conv = LUConv1x1(4).to(dtype)
    with torch.no_grad():
        conv.unbounded_log_s.fill_(extreme)

    determinant = torch.linalg.det(conv.weight()).detach()

    assert determinant.isfinite()
    assert determinant != 0
    log_abs_det = float(conv.log_abs_det().detach())
    assert abs(log_abs_det) == pytest.approx(4 * LOG_S_BOUND)
    assert log_abs_det == pytest.approx(float(determinant.abs().log()), rel=1e-4)


def test_the_permutation_and_the_signs_of_an_lu_convolution_do_not_train(generator: torch.Generator) -> None:
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
def test_an_orthogonal_convolution_has_condition_number_1_and_its_transpose_for_its_inverse(
    channels: int, prepared: Callable[[Bijector], Bijector], generator: torch.Generator
) -> None:
    conv = in_double(OrthogonalConv1x1, channels)
    assert isinstance(conv, OrthogonalConv1x1)
    start = conv.weight().detach()
    prepared(conv)  # away from the start by random weights
    weight = conv.weight().detach()
    y = torch.randn(channels, 7, generator=generator, dtype=torch.float64)

    if channels > 1:
        assert (weight - start).abs().max() > 0.05
    assert np.linalg.cond(weight.numpy()) == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(conv.apply_inverse(y).detach(), weight.T @ y, rtol=0, atol=1e-12)
    torch.testing.assert_close(weight @ weight.T @ y, y, rtol=0, atol=1e-9)
    assert conv.log_abs_det() == 0


def test_an_orthogonal_convolution_stays_one_while_it_learns(generator: torch.Generator) -> None:
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


def test_only_the_triangles_of_an_lu_convolution_count(generator: torch.Generator) -> None:
    conv = LUConv1x1(5)
    before = conv.weight().detach().clone()
    with torch.no_grad():
        conv.lower += torch.randn(5, 5, generator=generator).triu()
        conv.upper += torch.randn(5, 5, generator=generator).tril()

    assert torch.equal(conv.weight(), before)


# Couplings


@pytest.mark.parametrize("channels", [2, 3, 5, 8])
@pytest.mark.parametrize("coupling", [AffineCoupling, AdditiveCoupling])
def test_a_coupling_passes_its_first_half_and_changes_the_second(
    coupling: type[AffineCoupling] | type[AdditiveCoupling],
    channels: int,
    prepared: Callable[[Bijector], Bijector],
    generator: torch.Generator,
) -> None:
    layer = prepared(coupling(channels, width=6))
    x = torch.randn(2, channels, 4, 4, generator=generator, dtype=torch.float64)

    y, _ = layer(x)

    half = channels // 2
    assert torch.equal(y[:, :half], x[:, :half])
    assert (y[:, half:] - x[:, half:]).abs().amin() > 0


def test_an_additive_coupling_begins_as_the_identity(generator: torch.Generator) -> None:
    x = torch.randn(2, 4, 4, 4, generator=generator)

    y, log_det = AdditiveCoupling(4, width=6)(x)

    assert torch.equal(y, x)
    assert torch.equal(log_det, torch.zeros(2))


def test_an_affine_coupling_begins_with_the_scale_sigmoid_of_2(generator: torch.Generator) -> None:
    x = torch.randn(2, 4, 4, 4, generator=generator)

    y, log_det = AffineCoupling(4, width=6)(x)

    scale = torch.tensor(2.0).sigmoid()
    torch.testing.assert_close(y[:, 2:], x[:, 2:] * scale)
    torch.testing.assert_close(log_det, (2 * 4 * 4 * scale.log()).expand(2))


@pytest.mark.parametrize("coupling", [AffineCoupling, AdditiveCoupling])
def test_a_coupling_of_one_channel_is_refused(coupling: Callable[..., Bijector]) -> None:
    with pytest.raises(ValueError, match="got 1; give it 2 or more"):
        coupling(1, width=6)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_a_hidden_convolution_is_a_convolution_and_an_actnorm_in_one(
    kernel_size: int, prepared: Callable[..., nn.Module], generator: torch.Generator
) -> None:
    hidden = HiddenConv2d(3, 5, kernel_size, actnorm=True)
    prepared(hidden)
    assert hidden.conv.bias is None
    assert hidden.actnorm is not None
    x = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)

    weight, bias = hidden.weight_and_bias()

    expected, _ = hidden.actnorm(hidden.conv(x))
    torch.testing.assert_close(hidden(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        nn.functional.conv2d(x, weight, bias, padding=kernel_size // 2), expected, rtol=0, atol=1e-12
    )


def test_a_hidden_convolution_without_an_actnorm_has_a_bias(
    prepared: Callable[..., nn.Module], generator: torch.Generator
) -> None:
    hidden = HiddenConv2d(3, 5, 3, actnorm=False)
    prepared(hidden)
    x = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)

    weight, bias = hidden.weight_and_bias()

    assert hidden.actnorm is None
    assert bias.abs().min() > 0
    assert torch.equal(hidden(x), nn.functional.conv2d(x, weight, bias, padding=1))


def test_the_first_batch_leaves_the_hidden_layers_of_a_coupling_with_mean_0_and_variance_1(
    generator: torch.Generator,
) -> None:
    coupling = AffineCoupling(4, width=6, actnorm=True).double()
    hidden: list[Tensor] = []
    for layer in coupling.network:
        if isinstance(layer, HiddenConv2d):
            # Copied, for what comes next works in place.
            layer.register_forward_hook(lambda _module, _input, y: hidden.append(y.detach().clone()))
    x = 5 + 3 * torch.randn(7, 4, 4, 4, generator=generator, dtype=torch.float64)

    coupling(x)
    first = [parameter.detach().clone() for parameter in coupling.parameters()]
    coupling(x + 9)

    assert len(hidden) == 4
    for y in hidden[:2]:
        variance, mean = torch.var_mean(y, dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-9)
        torch.testing.assert_close(variance, torch.ones_like(variance), rtol=0, atol=1e-9)
    assert all(map(torch.equal, coupling.parameters(), first))  # the second batch changes nothing


@pytest.mark.parametrize("coupling", [AffineCoupling, AdditiveCoupling])
def test_a_coupling_tells_the_smallest_and_the_largest_factor_it_multiplies_by(
    coupling: type[AffineCoupling] | type[AdditiveCoupling],
    prepared: Callable[[Bijector], Bijector],
    generator: torch.Generator,
) -> None:
    layer = prepared(coupling(4, width=6))
    x = torch.randn(3, 4, 4, 4, generator=generator, dtype=torch.float64)
    twice = x.clone()
    twice[:, 2:] += 1  # a step of 1 is multiplied by the factor

    factors = (layer(twice)[0] - layer(x)[0])[:, 2:].detach()
    smallest, largest = layer.scale_range(layer.network(x[:, :2])).tolist()

    assert smallest == pytest.approx(float(factors.min()), rel=1e-6)
    assert largest == pytest.approx(float(factors.max()), rel=1e-6)
    assert (largest > smallest + 0.01) == (coupling is AffineCoupling)


def test_a_zero_convolution_begins_as_zero_and_its_log_scale_counts_three_times(
    generator: torch.Generator,
) -> None:
    conv = ZeroConv2d(2, 3)
    x = torch.randn(2, 2, 4, 4, generator=generator)
    assert torch.equal(conv(x), torch.zeros(2, 3, 4, 4))

    nn.init.normal_(conv.conv.weight, generator=generator)
    plain = conv(x)
    nn.init.constant_(conv.log_scale, 0.5)

    torch.testing.assert_close(conv(x), plain * np.exp(1.5))


# Priors and squeeze


def standard_normal(latent: Tensor) -> Tensor:
    """The log-density of each image's latents under a standard normal, [N]."""
    return torch.distributions.Normal(0.0, 1.0).log_prob(latent).sum((1, 2, 3))


def test_a_split_gives_its_half_the_density_of_the_gaussian_that_the_other_half_predicts(
    prepared: Callable[[Bijector], Bijector], generator: torch.Generator
) -> None:
    split = Split(6)
    prepared(split)
    x = torch.randn(3, 6, 4, 4, generator=generator, dtype=torch.float64)
    onward, z = x[:, :3], x[:, 3:]
    mean, log_scale = split.network(onward).split(3, dim=1)

    y, log_det = split(x)

    expected = torch.distributions.Normal(mean, log_scale.exp()).log_prob(z).sum((1, 2, 3))
    assert torch.equal(y[:, :3], onward)
    torch.testing.assert_close(standard_normal(y[:, 3:]) + log_det, expected, rtol=0, atol=1e-9)


def test_the_top_prior_is_a_gaussian_for_each_channel(
    prepared: Callable[[Bijector], Bijector], generator: torch.Generator
) -> None:
    prior = TopPrior(3)
    prepared(prior)
    z = torch.randn(3, 3, 2, 4, generator=generator, dtype=torch.float64)

    latent, log_det = prior(z)

    expected = torch.distributions.Normal(prior.mean, prior.log_scale.exp()).log_prob(z).sum((1, 2, 3))
    torch.testing.assert_close(standard_normal(latent) + log_det, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_squeeze_is_space_to_depth_of_onnx(channels: int, rng: np.random.Generator) -> None:
    node = onnx.helper.make_node("SpaceToDepth", ["x"], ["y"], blocksize=2)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "squeeze",
        [value("x", onnx.TensorProto.FLOAT, None)],
        [value("y", onnx.TensorProto.FLOAT, None)],
    )
    x = rng.random((2, channels, 4, 6), dtype=np.float32)

    (expected,) = ReferenceEvaluator(onnx.helper.make_model(graph)).run(None, {"x": x})
    y, log_det = Squeeze()(torch.from_numpy(x))

    np.testing.assert_array_equal(y.numpy(), expected)
    assert torch.equal(log_det, torch.zeros(2))
