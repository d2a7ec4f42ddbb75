"""The whole flow: a bijector; its latents; encoding, decoding and sampling of images."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from glowserve_training.config import GlowConfig
from glowserve_training.model import Glow
from glowserve_training.quantization import from_bins, to_bins
from torch import Tensor

from tests.training.conftest import JacobianLogDet, Perturb
from tests.training.models import initialized, random_images, tiny

ARCHITECTURES = [
    pytest.param(
        GlowConfig(
            image_size=8,
            channels=channels,
            levels=levels,
            steps_per_level=2,
            width=6,
            coupling=coupling,
            parametrization=parametrization,
        ),
        id=f"8x8x{channels}-{levels}-{coupling}-{parametrization}",
    )
    for channels, levels, coupling, parametrization in itertools.product(
        (1, 3), (1, 2, 3), ("affine", "additive"), ("lu", "plain")
    )
]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("config", ARCHITECTURES)
def test_the_inverse_inverts_the_forward(
    config: GlowConfig, n: int, perturb: Perturb, generator: torch.Generator
) -> None:
    model = Glow(config).double().eval()
    perturb(model, std=0.1)
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
    model = Glow(config).double().eval()
    perturb(model, std=0.1)
    x = torch.rand(2, config.channels, 8, 8, generator=generator, dtype=torch.float64) - 0.5

    _, log_det = model(x)

    torch.testing.assert_close(log_det.detach(), jacobian_log_det(model, x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", ARCHITECTURES)
def test_the_likelihood_depends_on_every_parameter(
    config: GlowConfig, perturb: Perturb, generator: torch.Generator
) -> None:
    model = initialized(config, generator)
    perturb(model, std=0.05)
    images = random_images(config, 4, generator)

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
    "config", [tiny(), tiny(channels=3, levels=3), tiny(coupling="additive", channels=3)]
)
def test_an_encoded_image_is_decoded_exactly(
    config: GlowConfig, n_bits: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    config = GlowConfig(**(vars(config) | {"n_bits": n_bits}))
    model = initialized(config, generator, dtype)
    images = random_images(config, 16, generator)

    latent = model.encode(images)
    back = model.decode(latent)

    assert latent.dtype == dtype
    assert back.dtype == torch.uint8
    assert torch.equal(back, from_bins(to_bins(images, n_bits), n_bits))


def test_a_latent_encodes_the_centers_of_the_bins(generator: torch.Generator) -> None:
    config = tiny(n_bits=2)
    model = initialized(config, generator, torch.float64)
    images = random_images(config, 3, generator)

    x, _ = model.inverse(model.encode(images))

    centers = (to_bins(images, 2).double() + 0.5) / 4 - 0.5
    torch.testing.assert_close(x.movedim(1, 3), centers, rtol=0, atol=1e-9)


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
