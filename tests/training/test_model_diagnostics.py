"""Condition numbers and coupling scales of a model; recomputed activations; compiled steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from glowserve_training.config import GlowConfig
from glowserve_training.layers import AffineCoupling
from glowserve_training.model import Glow
from torch import Tensor

from tests.training.conftest import Perturb
from tests.training.models import initialized, random_images, tiny


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
        pytest.param(lambda w: w[1:].zero_(), id="rank 1"),
        pytest.param(lambda w: w[0, 0].fill_(math.nan), id="NaN"),
        pytest.param(lambda w: w[0, 0].fill_(math.inf), id="infinite"),
    ],
)
def test_the_condition_number_of_a_singular_or_not_finite_matrix_is_infinite(
    spoil: Callable[[Tensor], Tensor],
) -> None:
    model = Glow(tiny(parametrization="plain"))
    with torch.no_grad():
        spoil(model.levels[1].steps[0].conv1x1.matrix)

    (first, second), (spoiled, fourth) = model.condition_numbers()

    assert spoiled == math.inf
    assert [first, second, fourth] == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.parametrize("dequantization", ["uniform", "variational"])
@pytest.mark.parametrize("coupling", ["affine", "additive"])
def test_the_coupling_scales_are_those_of_the_couplings(
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
    # No hook is left.
    assert not any(step.coupling.network._forward_hooks for step in model.flow_steps())


@pytest.mark.parametrize("dequantization", ["uniform", "variational"])
@pytest.mark.parametrize("parametrization", ["lu", "plain", "orthogonal"])
def test_recomputed_activations_give_the_same_loss_and_gradient_bit_for_bit(
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
    assert len(calls) == 2  # in the forward pass, and again in the backward pass
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert one.grad is not None, name
        assert torch.equal(one.grad, other.grad), name


@pytest.mark.filterwarnings("default")  # torch warns about itself
def test_every_level_stays_compiled_in_training_and_in_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    # This backend compiles the same graphs but generates no machine code, which is fast.
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
