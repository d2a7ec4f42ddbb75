"""The whole flow: a bijector, and with it a probability for every discrete image."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from glowserve_training.layers import AffineCoupling, Bijector
from glowserve_training.model import Glow, GlowConfig
from glowserve_training.quantization import from_bins, to_bins
from torch import Tensor

Perturb = Callable[..., None]
JacobianLogDet = Callable[[Bijector, Tensor], Tensor]

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


def tiny(**changes: object) -> GlowConfig:
    sizes = {"image_size": 8, "channels": 1, "levels": 2, "steps_per_level": 2, "width": 6}
    return GlowConfig(**(sizes | changes))  # type: ignore[arg-type]


def random_images(config: GlowConfig, n: int, generator: torch.Generator) -> Tensor:
    """Uniform noise, uint8 [N, H, W, C]."""
    shape = (n, config.image_size, config.image_size, config.channels)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def initialized(config: GlowConfig, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Glow:
    """A Glow that has seen a first batch, of random images."""
    model = Glow(config).to(dtype)
    images = random_images(config, 32, generator)
    model.log_prob(images, torch.rand(images.shape, generator=generator, dtype=dtype))
    return model.eval()


# A bijector


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("config", ARCHITECTURES)
def test_the_inverse_undoes_the_forward(
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
def test_every_parameter_has_a_part_in_the_likelihood(
    config: GlowConfig, perturb: Perturb, generator: torch.Generator
) -> None:
    model = initialized(config, generator)
    perturb(model, std=0.05)
    images = random_images(config, 4, generator)

    model.log_prob(images, torch.rand(images.shape, generator=generator)).sum().backward()

    idle = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any() or not parameter.grad.isfinite().all()
    ]
    assert idle == []


# A latent


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_shapes_of_the_latents_hold_all_dimensions(levels: int) -> None:
    config = tiny(levels=levels, channels=3)
    shapes = Glow(config).latent_shapes()

    assert len(shapes) == levels
    assert sum(map(math.prod, shapes)) == config.dimensions
    assert [(height, width) for _, height, width in shapes] == [
        (8 >> i, 8 >> i) for i in range(1, levels + 1)
    ]


def test_a_latent_begins_at_the_pixels_and_ends_at_the_top(generator: torch.Generator) -> None:
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

    assert changed == list(range(2 * 16, 3 * 16))  # of 4 channels of 4x4 places, the third


# A probability


@pytest.mark.parametrize("n_bits", [3, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_log_likelihood_is_that_of_a_normal_by_the_jacobian_and_the_volume_of_a_bin(
    channels: int,
    n_bits: int,
    perturb: Perturb,
    jacobian_log_det: JacobianLogDet,
    generator: torch.Generator,
) -> None:
    config = tiny(channels=channels, n_bits=n_bits)
    model = Glow(config).double().eval()
    perturb(model, std=0.1)
    images = random_images(config, 3, generator)
    noise = torch.rand(images.shape, generator=generator, dtype=torch.float64)

    bins = images.double().div(2 ** (8 - n_bits)).floor()
    x = ((bins + noise) / 2**n_bits - 0.5).movedim(3, 1)
    normal = torch.distributions.MultivariateNormal(
        torch.zeros(config.dimensions).double(), torch.eye(config.dimensions).double()
    )
    density = normal.log_prob(model(x)[0]) + jacobian_log_det(model, x)
    expected = density + config.dimensions * math.log(2.0**-n_bits)

    torch.testing.assert_close(model.log_prob(images, noise), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("coupling", ["affine", "additive"])
@pytest.mark.parametrize(("n_bits", "points"), [(1, 10), (2, 5)])
def test_the_probabilities_of_all_images_sum_to_1(
    n_bits: int, points: int, coupling: str, perturb: Perturb
) -> None:
    # The density is integrated exactly enough over each image's bins: noise runs over a grid of midpoints.
    config = tiny(image_size=2, levels=1, n_bits=n_bits, coupling=coupling)
    model = Glow(config).double().eval()
    perturb(model, std=0.1)
    with torch.no_grad():
        for step in model.levels[0].steps:
            step.actnorm.log_scale += math.log(20) / 2  # a width of about 1/16: all mass lies within the cube
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
    assert probabilities.max() > 4 * probabilities.min()  # it is not the uniform distribution that does


class UniformGlow(Glow):
    """The uniform density on [-0.5, 0.5)^D, as the flow that maps it onto normal latents: by the normal quantile."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        latent = torch.special.ndtri(x.flatten(1) + 0.5)
        return latent, -torch.distributions.Normal(0.0, 1.0).log_prob(latent).sum(1)


@pytest.mark.parametrize("n_bits", range(1, 9))
def test_a_uniform_model_needs_as_many_bits_a_dimension_as_an_image_has(
    n_bits: int, generator: torch.Generator
) -> None:
    config = tiny(channels=3, n_bits=n_bits)
    images = random_images(config, 5, generator)
    noise = torch.rand(images.shape, generator=generator, dtype=torch.float64).clamp_min(1e-6)

    bits = bits_per_dim(UniformGlow(config).log_prob(images, noise), config.dimensions)

    torch.testing.assert_close(bits, torch.full((5,), float(n_bits)).double(), rtol=0, atol=1e-9)


def test_bits_that_the_model_does_not_see_do_not_matter(generator: torch.Generator) -> None:
    config = tiny(n_bits=4)
    model = initialized(config, generator)
    images = random_images(config, 4, generator)
    noise = torch.rand(images.shape, generator=generator)

    assert torch.equal(model.log_prob(images & 0xF0, noise), model.log_prob(images | 0x0F, noise))


def test_an_image_scores_the_same_in_any_company(perturb: Perturb, generator: torch.Generator) -> None:
    config = tiny()
    model = Glow(config).double().eval()
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
@pytest.mark.parametrize("dequantization", ["uniform", "variational"])
@pytest.mark.parametrize("parametrization", ["lu", "plain", "orthogonal"])
def test_the_terms_of_a_log_likelihood_are_its_parts(
    parametrization: str, dequantization: str, levels: int, perturb: Perturb, generator: torch.Generator
) -> None:
    config = tiny(
        channels=3,
        n_bits=5,
        levels=levels,
        parametrization=parametrization,
        dequantization=dequantization,
        coupling_actnorm=True,
    )
    model = Glow(config).double().eval()
    perturb(model, std=0.1)
    images = random_images(config, 4, generator)
    noise = torch.rand(images.shape, generator=generator, dtype=torch.float64)

    terms = model.terms(images, noise)

    assert terms.log_prior.shape == terms.log_det.shape == (4, levels)
    assert terms.constant.shape == ()
    torch.testing.assert_close(terms.total(), model.log_prob(images, noise), rtol=1e-12, atol=0)
    normal = torch.distributions.Normal(0.0, 1.0)
    latent, _ = model(model.dequantize(images, noise)[0])
    sizes = [math.prod(shape) for shape in model.latent_shapes()]
    expected = [normal.log_prob(part).sum(1) for part in latent.split(sizes, dim=1)]
    torch.testing.assert_close(terms.log_prior, torch.stack(expected, dim=1), rtol=1e-12, atol=0)


def test_what_does_not_depend_on_the_image_is_in_the_constant_term(
    perturb: Perturb, generator: torch.Generator
) -> None:
    # Without a network that steers it, all that is left of an additive flow's log-determinant is the same for all.
    config = tiny(coupling="additive", levels=1, parametrization="plain")
    model = Glow(config).double().eval()
    perturb(model, std=0.1)
    images = random_images(config, 4, generator)
    noise = torch.rand(images.shape, generator=generator, dtype=torch.float64)

    terms = model.terms(images, noise)

    _, log_det = model(model.dequantize(images, noise)[0])
    torch.testing.assert_close(terms.log_det, torch.zeros_like(terms.log_det), rtol=0, atol=1e-9)
    expected = float(log_det[0].detach()) - config.dimensions * config.n_bits * math.log(2)
    assert float(terms.constant.detach()) == pytest.approx(expected, rel=1e-12)


# What training watches


@pytest.mark.parametrize("parametrization", ["lu", "plain", "orthogonal"])
def test_the_condition_numbers_are_those_of_numpy(parametrization: str, perturb: Perturb) -> None:
    model = Glow(tiny(channels=3, levels=3, steps_per_level=3, parametrization=parametrization))
    perturb(model, std=0.1)

    conditions = model.condition_numbers()

    assert [len(level) for level in conditions] == [3, 3, 3]
    for level, found in zip(model.levels, conditions, strict=True):
        expected = [np.linalg.cond(step.conv1x1.weight().detach().double().numpy()) for step in level.steps]
        assert found == pytest.approx(expected, rel=1e-9)
        assert (max(found) > 1.5) == (parametrization != "orthogonal")


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda w: w.zero_(), id="zero"),
        pytest.param(lambda w: w[1:].zero_(), id="a rank of 1"),
        pytest.param(lambda w: w[0, 0].fill_(math.nan), id="NaN"),
        pytest.param(lambda w: w[0, 0].fill_(math.inf), id="infinite"),
    ],
)
def test_the_condition_number_of_what_cannot_be_inverted_is_infinite(
    spoil: Callable[[Tensor], Tensor],
) -> None:
    model = Glow(tiny(parametrization="plain"))
    with torch.no_grad():
        spoil(model.levels[1].steps[0].conv1x1.matrix)

    (first, second), (spoilt, fourth) = model.condition_numbers()

    assert spoilt == math.inf
    assert [first, second, fourth] == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.parametrize("dequantization", ["uniform", "variational"])
@pytest.mark.parametrize("coupling", ["affine", "additive"])
def test_the_coupling_scales_are_what_the_couplings_multiply_by(
    coupling: str, dequantization: str, perturb: Perturb, generator: torch.Generator
) -> None:
    config = tiny(levels=3, coupling=coupling, dequantization=dequantization)
    model = Glow(config).eval()
    perturb(model, std=0.1)
    images = random_images(config, 5, generator)
    noise = torch.rand(images.shape, generator=generator)

    found = model.coupling_scales(images, noise)

    with torch.no_grad():
        x, _ = model.dequantize(images, noise)
        for level, (smallest, largest) in zip(model.levels, found, strict=True):
            x, _ = level.squeeze(x)
            scales = []
            for step in level.steps:
                passive, _ = step.conv1x1(step.actnorm(x)[0])[0].chunk(2, dim=1)
                raw = step.coupling.network(passive).chunk(2, dim=1)[1]
                affine = isinstance(step.coupling, AffineCoupling)
                scales.append(torch.sigmoid(raw + 2) if affine else torch.ones(1))
                x, _ = step(x)
            assert smallest == pytest.approx(min(float(scale.min()) for scale in scales), rel=1e-4)
            assert largest == pytest.approx(max(float(scale.max()) for scale in scales), rel=1e-4)
            x, _ = level.prior(x)[0].chunk(2, dim=1)
    # It leaves nothing behind that listens.
    assert not any(step.coupling.network._forward_hooks for step in model.flow_steps())


# What is traded for memory


@pytest.mark.parametrize("dequantization", ["uniform", "variational"])
@pytest.mark.parametrize("parametrization", ["lu", "plain", "orthogonal"])
def test_checkpointed_activations_change_no_bit_of_the_loss_or_the_gradient(
    parametrization: str, dequantization: str, generator: torch.Generator
) -> None:
    config = tiny(parametrization=parametrization, coupling_actnorm=True, dequantization=dequantization)
    model = initialized(config, generator).train()
    again = Glow(config)
    again.load_state_dict(model.state_dict())
    again.checkpoint_activations()
    images = random_images(config, 4, generator)
    noise = torch.rand(images.shape, generator=generator)
    calls: list[int] = []
    again.flow_steps()[0].coupling.register_forward_pre_hook(lambda *_: calls.append(1))

    losses = [-one.log_prob(images, noise).mean() for one in (model, again)]
    for loss in losses:
        loss.backward()

    assert torch.equal(*losses)
    assert len(calls) == 2  # forward, and again for the backward pass
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert one.grad is not None, name
        assert torch.equal(one.grad, other.grad), name


# Images


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_bits", [1, 5, 8])
@pytest.mark.parametrize(
    "config", [tiny(), tiny(channels=3, levels=3), tiny(coupling="additive", channels=3)]
)
def test_an_encoded_image_decodes_to_itself(
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


def test_a_latent_encodes_the_middles_of_the_bins(generator: torch.Generator) -> None:
    config = tiny(n_bits=2)
    model = initialized(config, generator, torch.float64)
    images = random_images(config, 3, generator)

    x, _ = model.inverse(model.encode(images))

    middles = (to_bins(images, 2).double() + 0.5) / 4 - 0.5
    torch.testing.assert_close(x.movedim(1, 3), middles, rtol=0, atol=1e-9)


def test_samples_are_bytes_in_the_shape_of_the_model(generator: torch.Generator) -> None:
    config = tiny(channels=3, n_bits=2)

    samples = initialized(config, generator).sample(5, generator=generator)

    assert samples.dtype == torch.uint8
    assert samples.shape == (5, 8, 8, 3)
    assert set(samples.unique().tolist()) <= {0, 85, 170, 255}
    assert len(samples.unique()) > 1


def test_samples_are_those_of_their_generator(generator: torch.Generator) -> None:
    model = initialized(tiny(), generator)

    def draw(seed: int) -> Tensor:
        return model.sample(3, generator=torch.Generator().manual_seed(seed))

    first = draw(1)
    torch.manual_seed(5)  # not asked

    assert torch.equal(draw(1), first)
    assert not torch.equal(draw(2), first)


def test_samples_at_temperature_0_are_all_the_same(generator: torch.Generator) -> None:
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


# The configuration


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"channels": 2}, r"channels is 2; it must be 1 \(grey\) or 3 \(RGB\)"),
        ({"n_bits": 0}, "n_bits is 0; it must lie in 1 to 8"),
        ({"n_bits": 9}, "n_bits is 9; it must lie in 1 to 8"),
        ({"levels": 0}, "levels is 0; it must be 1 or more"),
        ({"steps_per_level": 0}, "steps_per_level is 0; it must be 1 or more"),
        ({"width": -1}, "width is -1; it must be 1 or more"),
        ({"image_size": 12, "levels": 3}, r"image_size is 12.*multiple of 8 \(or use fewer levels\)"),
        ({"image_size": 0}, "image_size is 0.*positive multiple of 4"),
        ({"coupling": "spline"}, "coupling is 'spline'; it must be one of affine, additive"),
        ({"parametrization": "qr"}, "parametrization is 'qr'; it must be one of lu, plain"),
    ],
)
def test_an_impossible_architecture_is_refused_with_the_value_and_the_remedy(
    changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        tiny(**changes)


def test_dimensions_are_the_values_of_an_image() -> None:
    assert tiny(channels=3).dimensions == 8 * 8 * 3


@pytest.mark.filterwarnings("default")  # torch's own, of itself
def test_every_level_stays_compiled_in_training_and_in_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is compiled is the same with this backend, which makes no machine code of it, and so is quick.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    model = Glow(GlowConfig(image_size=16, channels=1, levels=4, steps_per_level=1, width=4))
    images = torch.randint(0, 256, (6, 16, 16, 1), dtype=torch.uint8)
    noise = torch.rand(6, 16, 16, 1)
    with torch.no_grad():
        expected = model.log_prob(images, noise)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        model.compile_steps()
        with torch.no_grad():
            validated = model.log_prob(images, noise)
            smaller = model.log_prob(images[:4], noise[:4])
        model.log_prob(images, noise).mean().backward()

    torch.testing.assert_close(validated, expected)
    torch.testing.assert_close(smaller, expected[:4])
    assert torch._dynamo.utils.counters["frames"]["ok"] >= 4 + 4 + 4
