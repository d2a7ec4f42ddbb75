"""Variational dequantization: a bijector of the noise, conditional on the image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from glowserve_training.config import GlowConfig
from glowserve_training.dequantization import NOISE_MARGIN, VariationalDequantization
from glowserve_training.model import Glow
from torch import Tensor

Perturb = Callable[..., None]


def make(channels: int = 1, couplings: int = 4, *, actnorm: bool = False) -> VariationalDequantization:
    return VariationalDequantization(channels, width=6, couplings=couplings, actnorm=actnorm).double().eval()


def noise_and_image(channels: int, generator: torch.Generator, n: int = 3) -> tuple[Tensor, Tensor]:
    noise, image = (torch.rand(n, channels, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return noise, image - 0.5


@pytest.mark.parametrize("couplings", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("actnorm", [False, True])
def test_the_log_determinant_is_that_of_the_jacobian(
    actnorm: bool, channels: int, couplings: int, perturb: Perturb, generator: torch.Generator
) -> None:
    layer = make(channels, couplings, actnorm=actnorm)
    perturb(layer)
    noise, image = noise_and_image(channels, generator)

    _, log_det = layer(noise, image)

    expected = []
    for u, x in zip(noise, image, strict=True):
        jacobian = torch.func.jacrev(lambda one, x=x: layer(one[None], x[None])[0].flatten())(u)
        expected.append(torch.linalg.slogdet(jacobian.reshape(u.numel(), u.numel())).logabsdet)
    assert log_det.shape == (3,)
    assert log_det.abs().min() > 0.1
    torch.testing.assert_close(log_det, torch.stack(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("couplings", [2, 4])
def test_it_is_initialized_as_the_identity(couplings: int, generator: torch.Generator) -> None:
    noise, image = noise_and_image(3, generator)

    learned, log_det = make(3, couplings)(noise, image)

    # Up to the margin that keeps the logit finite.
    torch.testing.assert_close(learned, noise, rtol=0, atol=2 * NOISE_MARGIN)
    torch.testing.assert_close(log_det, torch.zeros_like(log_det), rtol=0, atol=48 * 3 * NOISE_MARGIN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_learned_noise_stays_between_0_and_1(
    dtype: torch.dtype, perturb: Perturb, generator: torch.Generator
) -> None:
    layer = make(3).to(dtype)
    perturb(layer)
    noise, image = (part.to(dtype) for part in noise_and_image(3, generator, n=64))

    learned, _ = layer(noise, image)

    # In float32 a sigmoid can round to 1.
    assert learned.min() > 0
    assert learned.max() < 1 or dtype == torch.float32
    assert learned.max() <= 1
    assert (learned - noise).abs().max() > 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("extreme", [0.0, 1 - 2**-24])
def test_extreme_uniform_noise_gives_finite_results_and_gradients(
    extreme: float, dtype: torch.dtype, perturb: Perturb, generator: torch.Generator
) -> None:
    layer = make(3).to(dtype)
    perturb(layer, std=0.05)
    _, image = noise_and_image(3, generator)
    noise = torch.full_like(image, extreme).to(dtype).requires_grad_()

    learned, log_det = layer(noise, image.to(dtype))
    (learned.sum() + log_det.sum()).backward()

    assert learned.isfinite().all()
    assert log_det.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_learned_noise_depends_on_the_image_and_on_all_of_the_noise(
    perturb: Perturb, generator: torch.Generator
) -> None:
    layer = make(1)
    perturb(layer)
    noise, image = noise_and_image(1, generator, n=1)

    learned, _ = layer(noise, image)
    other, _ = layer(noise, -image)
    jacobian = torch.func.jacrev(lambda u: layer(u, image)[0].flatten())(noise).reshape(16, 16)

    assert (learned - other).abs().max() > 1e-3
    assert jacobian.abs().gt(0).sum() > 16  # it is not elementwise


@pytest.mark.parametrize("levels", [1, 2])
def test_the_log_likelihood_includes_the_log_determinant_of_the_dequantization(
    levels: int, perturb: Perturb, generator: torch.Generator
) -> None:
    config = GlowConfig(
        image_size=4,
        channels=1,
        n_bits=3,
        levels=levels,
        steps_per_level=1,
        width=4,
        dequantization="variational",
    )
    model = Glow(config).double().eval()
    perturb(model)
    images = torch.randint(0, 256, (3, 4, 4, 1), generator=generator, dtype=torch.uint8)
    noise = torch.rand(images.shape, generator=generator, dtype=torch.float64)
    assert model.dequantization is not None
    bins = torch.div(images, 32, rounding_mode="floor").double()
    centers = ((bins + 0.5) / 8 - 0.5).permute(0, 3, 1, 2)
    learned, log_det = model.dequantization(noise.permute(0, 3, 1, 2), centers)

    log_prob = model.log_prob(images, noise)

    model.dequantization = None  # the same flow now takes the learned noise for uniform noise
    uniform = model.log_prob(images, learned.permute(0, 2, 3, 1))
    assert log_det.abs().min() > 0.1
    torch.testing.assert_close(log_prob, uniform + log_det, rtol=1e-12, atol=0)
