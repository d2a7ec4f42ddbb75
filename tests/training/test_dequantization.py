"""Variational dequantization: a bijector of the noise, conditional on the image."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from glowserve_training.config import DataConfig, GlowConfig, RunConfig
from glowserve_training.dequantization import NOISE_MARGIN, VariationalDequantization
from glowserve_training.layers import Squeeze
from glowserve_training.model import Glow
from glowserve_training.module import GlowModule
from torch import Tensor, nn

Perturb = Callable[..., None]


def make(channels: int = 1, *, scale: str = "tanh", actnorm: bool = False) -> VariationalDequantization:
    config = GlowConfig(
        image_size=4,
        channels=channels,
        levels=1,
        coupling_scale=scale,
        coupling_actnorm=actnorm,
        pixel_width=6,
    )
    return VariationalDequantization(config).double().eval()


def noise_and_image(channels: int, generator: torch.Generator, n: int = 3) -> tuple[Tensor, Tensor]:
    noise, image = (torch.rand(n, channels, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return noise, image - 0.5


@pytest.mark.parametrize("scale", ["tanh", "sigmoid"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("actnorm", [False, True])
def test_the_log_determinant_is_that_of_the_jacobian(
    actnorm: bool, channels: int, scale: str, perturb: Perturb, generator: torch.Generator
) -> None:
    layer = make(channels, scale=scale, actnorm=actnorm)
    perturb(layer)
    noise, image = noise_and_image(channels, generator)

    learned, complement, log_det = layer(noise, image)

    expected = []
    for u, x in zip(noise, image, strict=True):
        jacobian = torch.func.jacrev(lambda one, x=x: layer(one[None], x[None])[0].flatten())(u)
        expected.append(torch.linalg.slogdet(jacobian.reshape(u.numel(), u.numel())).logabsdet)
    torch.testing.assert_close(complement, 1 - learned)
    assert log_det.shape == (3,)
    assert log_det.abs().min() > 0.1
    torch.testing.assert_close(log_det, torch.stack(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", ["tanh", "sigmoid"])
def test_it_is_initialized_as_the_identity(scale: str, generator: torch.Generator) -> None:
    noise, image = noise_and_image(3, generator)

    learned, _, log_det = make(3, scale=scale)(noise, image)

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

    learned, complement, _ = layer(noise, image)

    # In float32 a sigmoid can round to 1.
    assert learned.min() > 0
    assert complement.min() > 0
    assert learned.max() < 1 or dtype == torch.float32
    assert max(learned.max(), complement.max()) <= 1
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

    learned, complement, log_det = layer(noise, image.to(dtype))
    (learned.sum() + complement.log().sum() + log_det.sum()).backward()

    assert learned.isfinite().all()
    assert log_det.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_learned_noise_depends_on_the_image_and_on_all_of_the_noise(
    perturb: Perturb, generator: torch.Generator
) -> None:
    layer = make(1)
    perturb(layer)
    noise, image = noise_and_image(1, generator, n=1)

    learned, _, _ = layer(noise, image)
    other, _, _ = layer(noise, -image)
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
    learned, _, log_det = model.dequantization(noise.permute(0, 3, 1, 2), centers)

    log_prob = model.log_prob(images, noise)

    model.dequantization = None  # the same flow now takes the learned noise for uniform noise
    uniform = model.log_prob(images, learned.permute(0, 2, 3, 1))
    assert log_det.abs().min() > 0.1
    torch.testing.assert_close(log_prob, uniform + log_det, rtol=1e-12, atol=0)


@pytest.mark.parametrize("above_zero", [1e-3, 3e-6])
def test_the_complement_of_learned_noise_near_1_keeps_the_digits_of_float32(
    above_zero: float, perturb: Perturb, generator: torch.Generator
) -> None:
    layer = make(3)
    perturb(layer, std=0.05)
    _, image = noise_and_image(3, generator)
    noise = torch.full_like(image, 1 - above_zero).float()

    _, expected, _ = layer(noise.double(), image)
    _, complement, _ = layer.float()(noise, image.float())

    torch.testing.assert_close(complement.double(), expected, rtol=3e-5, atol=0)


# Version 0.1.0


def old_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict as version 0.1.0 wrote it: a list of networks."""
    return {
        re.sub(r"couplings\.(\d)\.network\.", r"networks.\1.", key): value for key, value in state.items()
    }


def old_dequantization(
    networks: list[nn.Module], noise: Tensor, image: Tensor, squeeze: Squeeze
) -> tuple[Tensor, Tensor]:
    """Learned noise and log-determinant, as version 0.1.0 computed them."""
    u = noise * (1 - 2 * NOISE_MARGIN) + NOISE_MARGIN
    log_det = noise[0].numel() * math.log1p(-2 * NOISE_MARGIN) - (u.log() + (1 - u).log()).sum((1, 2, 3))
    z, context = squeeze(u.logit())[0], squeeze(image)[0]
    for network in networks:
        passive, active = z.chunk(2, dim=1)
        shift, raw = network(torch.cat((passive, context), dim=1)).chunk(2, dim=1)
        log_det = log_det + (2 * raw.sigmoid()).log().sum((1, 2, 3))
        z = torch.cat(((active + shift) * (2 * raw.sigmoid()), passive), dim=1)
    v = squeeze.inverse(z)[0].sigmoid()
    return v, log_det + (v * (1 - v)).log().sum((1, 2, 3))


@pytest.mark.parametrize("actnorm", [False, True])
def test_weights_of_version_0_1_0_mean_what_they_meant(
    actnorm: bool, perturb: Perturb, generator: torch.Generator
) -> None:
    saved, loaded = (make(3, scale="sigmoid", actnorm=actnorm) for _ in range(2))
    perturb(saved)
    noise, image = noise_and_image(3, generator)
    state = old_keys(saved.state_dict())

    loaded.load_state_dict(state)

    learned, _, log_det = loaded(noise, image)
    networks = [coupling.network for coupling in saved.flow_couplings()]
    expected, expected_log_det = old_dequantization(networks, noise, image, Squeeze())
    assert not any(key.startswith("couplings") for key in state)  # it is the caller's
    torch.testing.assert_close(learned, expected)
    torch.testing.assert_close(log_det, expected_log_det)


def test_a_saved_state_of_version_0_1_0_is_loaded_into_the_module_of_a_run(perturb: Perturb) -> None:
    model_config = GlowConfig(
        image_size=4, channels=1, levels=1, width=4, coupling_scale="sigmoid", dequantization="variational"
    )
    data = DataConfig(data="digits", image_size=4, channels=1)
    config = RunConfig(model=model_config, data=data, steps=1, batch_size=1)
    saved, loaded = (GlowModule(Glow(model_config), config) for _ in range(2))
    perturb(saved)
    state = old_keys(saved.state_dict())
    assert any(key.startswith("model.dequantization.networks.") for key in state)

    loaded.load_state_dict(state)

    # The optimizer and the EMA know parameters by their order, which must be the old one, too.
    names = [*old_keys(dict(loaded.named_parameters()))]
    of_network = [
        *(
            f"{layer}.{name}"
            for layer in (0, 2)
            for name in ("conv.weight", "actnorm.bias", "actnorm.log_scale")
        ),
        *("4.log_scale", "4.conv.weight", "4.conv.bias"),
    ]
    assert names[:37] == [
        *(f"model.dequantization.networks.{k}.{name}" for k in range(4) for name in of_network),
        "model.levels.0.steps.0.actnorm.bias",
    ]
    for (name, value), expected in zip(loaded.state_dict().items(), saved.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("key", ["networks.4.0.conv.weight", "networks.0.5.conv.weight", "networks.0"])
def test_old_weights_that_fit_no_coupling_are_refused(key: str) -> None:
    layer = make(1, scale="sigmoid")
    state = old_keys(layer.state_dict())
    state[key] = torch.zeros(1)

    with pytest.raises(RuntimeError, match="Unexpected key"):
        layer.load_state_dict(state)
