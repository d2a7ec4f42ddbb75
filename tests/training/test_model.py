"""The whole flow: a bijector; its latents; encoding, decoding and sampling of images."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from glowserve_training.config import PREPROCESSINGS, GlowConfig
from glowserve_training.model import Glow
from glowserve_training.quantization import from_bins, to_bins
from torch import Tensor

from tests.training.conftest import JacobianLogDet, Perturb
from tests.training.models import in_double, initialized, random_images, tiny

COUPLINGS: dict[str, dict[str, Any]] = {
    "tanh": {},
    "sigmoid": {"coupling_scale": "sigmoid"},
    "additive": {"coupling": "additive"},
    "tanh, 1 checkerboard": {"checkerboards": 1},
    "sigmoid, 2 checkerboards": {"coupling_scale": "sigmoid", "checkerboards": 2},
    "spline, 1 checkerboard": {"coupling": "spline", "checkerboards": 1},
    "additive, 3 checkerboards": {"coupling": "additive", "checkerboards": 3},
}
ARCHITECTURES = [
    pytest.param(
        tiny(channels=channels, levels=levels, parametrization=parametrization, **COUPLINGS[name]),
        id=f"8x8x{channels}-{levels}-{name}-{parametrization}",
    )
    for (channels, levels), name, parametrization in itertools.product(
        ((3, 1), (1, 2), (3, 3)), COUPLINGS, ("qlu", "lu", "plain")
    )
]


@pytest.mark.parametrize("config", ARCHITECTURES)
def test_the_inverse_inverts_the_forward(
    config: GlowConfig, perturb: Perturb, generator: torch.Generator
) -> None:
    model = in_double(Glow, config).eval()
    perturb(model, std=0.1)
    for n in (1, 3):
        x = torch.rand(n, config.channels, 8, 8, generator=generator, dtype=torch.float64) - 0.5

        latent, log_det = model(x)
        back, inverse_log_det = model.inverse(latent)

        assert latent.shape == (n, config.dimensions)
        assert log_det.shape == (n,)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
        torch.testing.assert_close(inverse_log_det, -log_det, rtol=0, atol=1e-9)


@pytest.mark.parametrize("config", ARCHITECTURES)
def test_the_log_determinant_is_that_of_the_jacobian(
    config: GlowConfig, perturb: Perturb, jacobian_log_det: JacobianLogDet, generator: torch.Generator
) -> None:
    model = in_double(Glow, config).eval()
    perturb(model, std=0.1)
    x = torch.rand(2, config.channels, 8, 8, generator=generator, dtype=torch.float64) - 0.5

    _, log_det = model(x)

    torch.testing.assert_close(log_det.detach(), jacobian_log_det(model, x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", ARCHITECTURES)
def test_the_likelihood_depends_on_every_parameter(
    config: GlowConfig, perturb: Perturb, generator: torch.Generator
) -> None:
    model = initialized(config, generator)
    perturb(model, std=0.02)
    images = random_images(config, 32, generator)  # of fewer, all hidden values of a network may be negative

    model.log_prob(images, torch.rand(images.shape, generator=generator)).sum().backward()

    unused = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any() or not parameter.grad.isfinite().all()
    ]
    assert unused == []


# Latents


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_shapes_of_the_latents_have_all_dimensions(levels: int) -> None:
    config = tiny(levels=levels, channels=3)
    shapes = Glow(config).latent_shapes()

    assert len(shapes) == levels
    assert sum(map(math.prod, shapes)) == config.dimensions
    assert [(height, width) for _, height, width in shapes] == [
        (8 >> i, 8 >> i) for i in range(1, levels + 1)
    ]


def test_a_latent_vector_has_level_1_first_and_the_top_level_last(generator: torch.Generator) -> None:
    config = tiny(levels=3, channels=3)
    model = initialized(config, generator)
    images = random_images(config, 2, generator)
    before = model.encode(images)
    bounds = [0, *itertools.accumulate(map(math.prod, model.latent_shapes()))]

    for level, (first, end) in enumerate(itertools.pairwise(bounds)):
        prior = model.levels[level].prior
        mean = prior.mean if level == 2 else prior.network.conv.bias
        with torch.no_grad():
            mean += 1
        changed = (model.encode(images) != before).all(0).nonzero().flatten().tolist()
        assert changed == list(range(first, end))
        with torch.no_grad():
            mean -= 1


def test_within_a_level_a_latent_is_row_major_over_channel_row_column(generator: torch.Generator) -> None:
    config = tiny(levels=1)
    model = initialized(config, generator)
    images = random_images(config, 2, generator)
    with torch.no_grad():
        before = model.encode(images)
        model.levels[0].prior.mean[2] += 1
        changed = (model.encode(images) != before).all(0).nonzero().flatten().tolist()

    assert changed == list(range(2 * 16, 3 * 16))  # the third of 4 channels of 4x4 positions


# Images


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_bits", [1, 5, 8])
@pytest.mark.parametrize(
    "config",
    [
        tiny(),
        tiny(channels=3, levels=3, parametrization="lu", coupling_scale="sigmoid"),
        tiny(coupling="additive", channels=3),
        tiny(preprocessing="logit", checkerboards=3, channels=3),
    ],
)
def test_an_encoded_image_is_decoded_exactly(
    config: GlowConfig, n_bits: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    config = replace(config, n_bits=n_bits)
    model = initialized(config, generator, dtype)
    images = random_images(config, 16, generator)

    latent = model.encode(images)
    back = model.decode(latent)

    assert latent.dtype == dtype
    assert back.dtype == torch.uint8
    assert torch.equal(back, from_bins(to_bins(images, n_bits), n_bits))


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS)
def test_a_latent_encodes_the_centers_of_the_bins(preprocessing: str, generator: torch.Generator) -> None:
    config = tiny(n_bits=2, preprocessing=preprocessing)
    model = initialized(config, generator, torch.float64)
    images = random_images(config, 3, generator)

    pixels = model.pixels(model.encode(images))

    torch.testing.assert_close(pixels, to_bins(images, 2).double() + 0.5, rtol=0, atol=1e-9)


class Overflowing(Glow):
    """Its inverse is infinite at the first two pixels."""

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = super().inverse(y)
        x[:, :, 0, :2] = torch.tensor([math.inf, -math.inf])
        return x, log_det


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS)
def test_pixels_are_not_finite_where_the_flow_overflows(
    preprocessing: str, generator: torch.Generator
) -> None:
    # The inverse of a logit alone would make pixels of 0 and 255 of infinite values.
    config = tiny(preprocessing=preprocessing)

    with torch.no_grad():
        finite = Overflowing(config).eval().pixels(torch.randn(3, 64, generator=generator)).isfinite()

    assert finite[:, 0, :2].logical_not().all()
    assert finite[:, 0, 2:].all()
    assert finite[:, 1:].all()


def test_checkerboard_couplings_alternate_and_see_pixels_at_full_resolution(
    perturb: Perturb, generator: torch.Generator
) -> None:
    model = in_double(Glow, tiny(checkerboards=2, channels=3)).eval()
    perturb(model)
    x = torch.randn(1, 3, 8, 8, generator=generator, dtype=torch.float64)
    even = (torch.arange(8)[:, None] + torch.arange(8)) % 2 == 0

    changed = []
    for coupling in model.couplings_of_pixels():
        y, _ = coupling(x)
        changed.append((y != x)[0])
        x = y

    assert torch.equal(changed[0], ~even.expand(3, -1, -1))
    assert torch.equal(changed[1], even.expand(3, -1, -1))


def test_samples_are_images_of_the_models_shape_and_bits(generator: torch.Generator) -> None:
    config = tiny(channels=3, n_bits=2)

    samples = initialized(config, generator).sample(5, generator=generator)

    assert samples.dtype == torch.uint8
    assert samples.shape == (5, 8, 8, 3)
    assert set(samples.unique().tolist()) <= {0, 85, 170, 255}
    assert len(samples.unique()) > 1


def test_samples_depend_only_on_their_generator(generator: torch.Generator) -> None:
    model = initialized(tiny(), generator)

    def draw(seed: int) -> Tensor:
        return model.sample(3, generator=torch.Generator().manual_seed(seed))

    first = draw(1)
    torch.manual_seed(5)  # the global generator is not used

    assert torch.equal(draw(1), first)
    assert not torch.equal(draw(2), first)


def test_samples_at_temperature_0_are_equal(generator: torch.Generator) -> None:
    model = initialized(tiny(), generator)

    cold = model.sample(4, temperature=0.0, generator=generator)

    assert torch.equal(cold, cold[:1].expand(4, -1, -1, -1))
    assert not torch.equal(model.sample(1, generator=generator), cold[:1])


def test_samples_decode_normal_latents_times_the_temperature(generator: torch.Generator) -> None:
    config = tiny()
    model = initialized(config, generator)
    latent = torch.randn(3, config.dimensions, generator=torch.Generator().manual_seed(1))

    samples = model.sample(3, temperature=0.7, generator=torch.Generator().manual_seed(1))

    assert torch.equal(samples, model.decode(0.7 * latent))
