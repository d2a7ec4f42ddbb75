"""Condition numbers and coupling scales of a model; recomputed activations; compiled steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glowserve_training.config import PARAMETRIZATIONS, GlowConfig
from glowserve_training.hardware import Hardware
from glowserve_training.layers import Bijector, Coupling, CouplingNetwork
from glowserve_training.model import Glow
from glowserve_training.preprocessing import Preprocessing
from glowserve_training.run import train
from torch import Tensor

from tests.training.conftest import Perturb
from tests.training.models import initialized, random_images, tiny
from tests.training.runs import TinyRun


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
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
@pytest.mark.parametrize("checkerboards", [0, 2])
@pytest.mark.parametrize(
    ("choices", "scale_of"),
    [
        ({}, lambda coupling, raw: coupling.transform.bound() * torch.tanh(raw / coupling.transform.bound())),
        ({"coupling_scale": "sigmoid"}, lambda _, raw: torch.sigmoid(raw + 2).log()),
        ({"coupling": "additive"}, lambda _, _raw: torch.zeros(1)),
    ],
    ids=["tanh", "sigmoid", "additive"],
)
def test_the_coupling_scales_are_those_of_the_couplings(
    choices: dict[str, Any],
    scale_of: Callable[[Coupling, Tensor], Tensor],
    checkerboards: int,
    dequantization: str,
    perturb: Perturb,
    generator: torch.Generator,
) -> None:
    config = tiny(levels=3, dequantization=dequantization, checkerboards=checkerboards, **choices)
    model = Glow(config).eval()
    perturb(model, std=0.1)
    images = random_images(config, 5, generator)
    noise = torch.rand(images.shape, generator=generator)

    found = model.coupling_scales(images, noise)

    with torch.no_grad():
        x, _ = model.preprocess(model.dequantize(images, noise))
        scales = []
        for parity, coupling in enumerate(model.couplings_of_pixels()):
            active = (torch.arange(8)[:, None] + torch.arange(8)) % 2 != parity
            raw = coupling.network(x * ~active).chunk(2, dim=1)[-1]
            scales.append(scale_of(coupling, raw).expand_as(raw)[:, :, active].exp())
            x, _ = coupling(x)
        for level, (smallest, largest) in zip(model.levels, found, strict=True):
            x, _ = level.squeeze(x)
            for step in level.steps:
                passive, _ = step.conv1x1(step.actnorm(x)[0])[0].chunk(2, dim=1)
                raw = step.coupling.network(passive).chunk(2, dim=1)[1]
                scales.append(scale_of(step.coupling, raw).exp())
                x, _ = step(x)
            assert smallest == pytest.approx(min(float(scale.min()) for scale in scales), rel=1e-4)
            assert largest == pytest.approx(max(float(scale.max()) for scale in scales), rel=1e-4)
            x, _ = level.prior(x)[0].chunk(2, dim=1)
            scales = []
    # No hook is left.
    couplings = [*model.couplings_of_pixels(), *(step.coupling for step in model.flow_steps())]
    assert not any(coupling.transform._forward_hooks for coupling in couplings)


@pytest.mark.parametrize("dequantization", ["uniform", "variational"])
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_recomputed_activations_give_the_same_loss_and_gradient_bit_for_bit(
    parametrization: str, dequantization: str, generator: torch.Generator
) -> None:
    config = tiny(
        parametrization=parametrization,
        coupling_actnorm=True,
        dequantization=dequantization,
        checkerboards=2,
    )
    model = initialized(config, generator).train()
    again = Glow(config)
    again.load_state_dict(model.state_dict())
    again.checkpoint_activations()
    images = random_images(config, 4, generator)
    noise = torch.rand(images.shape, generator=generator)
    calls: list[str] = []
    again.couplings_of_pixels()[0].register_forward_pre_hook(lambda *_: calls.append("of pixels"))
    again.flow_steps()[0].coupling.register_forward_pre_hook(lambda *_: calls.append("of a step"))

    losses = [-one.log_prob(images, noise).mean() for one in (model, again)]
    for loss in losses:
        loss.backward()

    assert torch.equal(*losses)
    # In the forward pass, and again in the backward pass.
    assert calls == ["of pixels", "of a step", "of a step", "of pixels"]
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert one.grad is not None, name
        assert torch.equal(one.grad, other.grad), name


@pytest.mark.parametrize(
    "choices", [{}, {"coupling_scale": "sigmoid", "parametrization": "lu"}, {"coupling": "spline"}]
)
def test_only_the_coupling_networks_run_in_half_precision_under_autocast(
    choices: dict[str, Any], perturb: Perturb, generator: torch.Generator
) -> None:
    config = tiny(preprocessing="logit", checkerboards=2, dequantization="variational", **choices)
    model = Glow(config)
    images = random_images(config, 32, generator)
    noise = torch.rand(images.shape, generator=generator)
    model.log_prob(images, noise)
    dtypes: dict[str, set[torch.dtype]] = {}
    for name, module in model.named_modules():
        if isinstance(module, (Bijector, CouplingNetwork, Preprocessing)):
            module.register_forward_hook(
                lambda *args, name=name: dtypes.setdefault(name, set()).update(
                    part.dtype for part in (args[2] if isinstance(args[2], tuple) else args[2:])
                )
            )
    perturb(model, std=0.02)
    exact = model.log_prob(images, noise)
    dtypes.clear()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.log_prob(images, noise)
    half.mean().backward()

    networks = {name: found for name, found in dtypes.items() if name.endswith("network")}
    assert len(networks) == 4 + 2 + 2 * 2  # of the noise, of pixels and of steps
    assert set.union(*networks.values()) == {torch.bfloat16}
    others = [found for name, found in dtypes.items() if name not in networks and ".prior" not in name]
    assert set.union(*others) == {torch.float32}
    assert half.dtype == torch.float32
    # bfloat16 has 8 bits.
    torch.testing.assert_close(half, exact, rtol=0.02, atol=1)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.filterwarnings("default")  # torch warns about itself
@pytest.mark.parametrize(("levels", "checkerboards"), [(4, 0), (1, 5), (3, 4)])
def test_every_level_and_pixel_coupling_stays_compiled_in_training_and_in_validation(
    levels: int, checkerboards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This backend compiles the same graphs but generates no machine code, which is fast.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    config = GlowConfig(
        image_size=16, channels=1, levels=levels, steps_per_level=1, width=4, checkerboards=checkerboards
    )
    model = Glow(config)
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
    # For two sizes without gradients and one with them, of each level and of each parity.
    assert torch._dynamo.utils.counters["frames"]["ok"] >= 3 * (levels + min(checkerboards, 2))


@pytest.mark.filterwarnings("default")  # torch warns about itself
def test_actnorms_are_initialized_before_anything_is_compiled(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[bool] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        compiled.append(any(node.target in ("copy_", "fill_") for node in graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch._dynamo.reset()

    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        config = tiny_run(steps=2, levels=1, checkerboards=4)
        train(config, tmp_path, hardware=Hardware(device="cpu", compile=True))

    assert len(compiled) >= 3  # one level and two parities
    assert not any(compiled)  # no graph sets parameters
