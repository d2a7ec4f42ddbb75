"""`Glow.log_prob` is the log-probability of discrete images, and `Glow.terms` are its terms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from glowserve_training.config import PARAMETRIZATIONS
from glowserve_training.model import Glow
from glowserve_training.quantization import from_bins
from torch import Tensor

from glowserve.likelihood import bits_per_dim
from tests.training.conftest import JacobianLogDet, Perturb
from tests.training.models import in_double, initialized, random_images, tiny


@pytest.mark.parametrize("n_bits", [3, 8])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("preprocessing", "checkerboards"), [("centre", 0), ("logit", 2)])
def test_the_log_likelihood_follows_from_a_normal_density_the_jacobian_and_the_volume_of_a_bin(
    preprocessing: str,
    checkerboards: int,
    channels: int,
    n_bits: int,
    perturb: Perturb,
    jacobian_log_det: JacobianLogDet,
    generator: torch.Generator,
) -> None:
    config = tiny(channels=channels, n_bits=n_bits, preprocessing=preprocessing, checkerboards=checkerboards)
    model = in_double(Glow, config).eval()
    perturb(model, std=0.1)
    images = random_images(config, 3, generator)
    noise = torch.rand(images.shape, generator=generator, dtype=torch.float64)

    bins = images.double().div(2 ** (8 - n_bits)).floor()
    s = ((bins + noise) / 2**n_bits).movedim(3, 1)
    if preprocessing == "centre":
        x, log_det_preprocessing = s - 0.5, 0
    else:
        kept = 1e-5 + (1 - 2e-5) * s
        x = kept.logit()
        log_det_preprocessing = ((1 - 2e-5) / kept / (1 - kept)).log().sum((1, 2, 3))
    normal = torch.distributions.MultivariateNormal(
        torch.zeros(config.dimensions).double(), torch.eye(config.dimensions).double()
    )
    density = normal.log_prob(model(x)[0]) + jacobian_log_det(model, x) + log_det_preprocessing
    expected = density + config.dimensions * math.log(2.0**-n_bits)

    torch.testing.assert_close(model.log_prob(images, noise), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "couplings",
    [
        {},
        {"checkerboards": 2},
        {"coupling_scale": "sigmoid", "parametrization": "lu"},
        {"coupling": "additive"},
    ],
)
@pytest.mark.parametrize(("n_bits", "points"), [(1, 10), (2, 5)])
def test_the_probabilities_of_all_images_sum_to_1(
    n_bits: int, points: int, couplings: dict[str, Any], perturb: Perturb
) -> None:
    # The density is integrated over each image's bins by the midpoint rule.
    config = tiny(image_size=2, levels=1, n_bits=n_bits, **couplings)
    model = in_double(Glow, config).eval()
    perturb(model, std=0.1)
    with torch.no_grad():
        for step in model.levels[0].steps:
            # Standard deviations of about 1/16: all mass lies within the cube.
            step.actnorm.log_scale += math.log(28) / 2
    images = torch.cartesian_prod(*[from_bins(torch.arange(2**n_bits, dtype=torch.uint8), n_bits)] * 4)
    grid = torch.cartesian_prod(*[(torch.arange(points, dtype=torch.float64) + 0.5) / points] * 4)

    with torch.no_grad():
        probabilities = torch.stack(
            [
                model.log_prob(
                    image.reshape(1, 2, 2, 1).expand(len(grid), -1, -1, -1), grid.reshape(-1, 2, 2, 1)
                )
                .exp()
                .mean()
                for image in images
            ]
        )

    assert len(probabilities) == 2 ** (4 * n_bits)
    assert float(probabilities.sum()) == pytest.approx(1, abs=2e-3)
    assert probabilities.max() > 4 * probabilities.min()  # the distribution is not uniform


class UniformGlow(Glow):
    """The uniform density on [-0.5, 0.5)^D: the flow is the normal quantile function."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        latent = torch.special.ndtri(x.flatten(1) + 0.5)
        return latent, -torch.distributions.Normal(0.0, 1.0).log_prob(latent).sum(1)


@pytest.mark.parametrize("n_bits", range(1, 9))
def test_a_uniform_model_has_n_bits_bits_per_dim(n_bits: int, generator: torch.Generator) -> None:
    config = tiny(channels=3, n_bits=n_bits)
    images = random_images(config, 5, generator)
    noise = torch.rand(images.shape, generator=generator, dtype=torch.float64).clamp_min(1e-6)

    bits = bits_per_dim(UniformGlow(config).log_prob(images, noise), config.dimensions)

    torch.testing.assert_close(bits, torch.full((5,), float(n_bits)).double(), rtol=0, atol=1e-9)


def test_bits_that_the_model_does_not_see_do_not_change_the_likelihood(generator: torch.Generator) -> None:
    config = tiny(n_bits=4)
    model = initialized(config, generator)
    images = random_images(config, 4, generator)
    noise = torch.rand(images.shape, generator=generator)

    assert torch.equal(model.log_prob(images & 0xF0, noise), model.log_prob(images | 0x0F, noise))


def test_the_likelihood_of_an_image_does_not_depend_on_its_batch(
    perturb: Perturb, generator: torch.Generator
) -> None:
    config = tiny()
    model = in_double(Glow, config).eval()
    perturb(model, std=0.1)
    images = random_images(config, 5, generator)
    noise = torch.rand(images.shape, generator=generator, dtype=torch.float64)

    together = model.log_prob(images, noise)
    alone = torch.cat([model.log_prob(images[i : i + 1], noise[i : i + 1]) for i in range(5)])

    torch.testing.assert_close(alone, together, rtol=1e-12, atol=0)


def test_float32_is_enough_for_a_log_likelihood(generator: torch.Generator) -> None:
    config = tiny(channels=3)
    model = initialized(config, generator)
    images = random_images(config, 8, generator)
    noise = torch.rand(images.shape, generator=generator)

    single = model.log_prob(images, noise).double()
    double = model.double().log_prob(images, noise.double())

    torch.testing.assert_close(single, double, rtol=1e-5, atol=0)


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize(
    ("dequantization", "preprocessing", "checkerboards"),
    [("uniform", "centre", 0), ("variational", "centre", 0), ("variational", "logit", 2)],
)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_the_terms_add_up_to_the_log_likelihood(
    parametrization: str,
    dequantization: str,
    preprocessing: str,
    checkerboards: int,
    levels: int,
    perturb: Perturb,
    generator: torch.Generator,
) -> None:
    config = tiny(
        channels=3,
        n_bits=5,
        levels=levels,
        parametrization=parametrization,
        dequantization=dequantization,
        preprocessing=preprocessing,
        checkerboards=checkerboards,
        coupling_actnorm=True,
    )
    model = in_double(Glow, config).eval()
    perturb(model, std=0.1)
    images = random_images(config, 4, generator)
    noise = torch.rand(images.shape, generator=generator, dtype=torch.float64)

    terms = model.terms(images, noise)

    assert terms.log_prior.shape == terms.log_det.shape == (4, levels)
    assert terms.constant.shape == ()
    torch.testing.assert_close(terms.total(), model.log_prob(images, noise), rtol=1e-12, atol=0)
    normal = torch.distributions.Normal(0.0, 1.0)
    latent, _ = model(model.preprocess(model.dequantize(images, noise))[0])
    sizes = [math.prod(shape) for shape in model.latent_shapes()]
    expected = [normal.log_prob(part).sum(1) for part in latent.split(sizes, dim=1)]
    torch.testing.assert_close(terms.log_prior, torch.stack(expected, dim=1), rtol=1e-12, atol=0)


def test_the_constant_term_has_all_that_does_not_depend_on_the_image(
    perturb: Perturb, generator: torch.Generator
) -> None:
    # With additive couplings and one level, no log-determinant depends on the image.
    config = tiny(coupling="additive", levels=1, parametrization="plain")
    model = in_double(Glow, config).eval()
    perturb(model, std=0.1)
    images = random_images(config, 4, generator)
    noise = torch.rand(images.shape, generator=generator, dtype=torch.float64)

    terms = model.terms(images, noise)

    _, log_det = model(model.preprocess(model.dequantize(images, noise))[0])
    torch.testing.assert_close(terms.log_det, torch.zeros_like(terms.log_det), rtol=0, atol=1e-9)
    expected = float(log_det[0].detach()) - config.dimensions * config.n_bits * math.log(2)
    assert float(terms.constant.detach()) == pytest.approx(expected, rel=1e-12)
