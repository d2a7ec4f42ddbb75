"""The loss and the learning rate schedule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from glowserve_training.config import DataConfig, GlowConfig, RunConfig
from glowserve_training.model import Glow
from glowserve_training.module import GlowModule

CONFIG = GlowConfig(image_size=4, channels=1, levels=1, steps_per_level=1, width=4)


def make_module(**changes: Any) -> GlowModule:
    settings: Any = {"learning_rate": 0.5, "warmup_steps": 4, "steps": 20, "batch_size": 6}
    data = DataConfig(data="digits", image_size=4, channels=1)
    return GlowModule(Glow(CONFIG), RunConfig(model=CONFIG, data=data, **(settings | changes)))


def learning_rates(module: GlowModule, steps: int) -> list[float]:
    """The learning rate of each step."""
    parts = module.configure_optimizers()
    optimizer, schedule = parts["optimizer"], parts["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    expected = [0.5 * min(1, (step + 1) / 4) * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)]

    rates = learning_rates(make_module(), 20)

    assert rates == pytest.approx(expected)
    assert rates[0] == pytest.approx(0.125)
    assert max(rates) == rates[3]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.01 * 0.5


def test_the_learning_rate_ends_at_0_and_stays_there() -> None:
    assert learning_rates(make_module(), 25)[20:] == pytest.approx([0] * 5, abs=1e-12)


def test_the_loss_is_the_mean_of_the_bits_per_dimension(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_module()
    logged: dict[str, float] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: float(value.detach())}))
    images = torch.randint(0, 256, (6, 4, 4, 1), generator=generator, dtype=torch.uint8)
    noise = torch.rand(images.shape, generator=generator)

    loss = module.training_step((images, noise), 0)

    bits = -module.model.log_prob(images, noise) / (16 * math.log(2))
    torch.testing.assert_close(loss, bits.mean())
    assert loss.requires_grad
    assert logged == pytest.approx({"train_bits_per_dim": float(loss.detach())})
