"""Fixtures of the training tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import glowserve_training.run
import numpy as np
import pytest
import torch
from glowserve_training import schedule
from glowserve_training.config import RunConfig
from glowserve_training.data import DataConfig, load_images
from glowserve_training.layers import Bijector
from glowserve_training.presets import run_config
from torch import Tensor, nn

from tests.training.runs import PLAIN, Recorder, TinyRun, Uninterrupted, run

Perturb = Callable[..., None]
JacobianLogDet = Callable[[Bijector, Tensor], Tensor]
VALIDATIONS = schedule._VALIDATIONS


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test initializes its models with the same weights in every run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def few_validations() -> Iterator[None]:
    """Runs validate and save 10 times instead of 20, so that a run of 20 steps does so after every second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "_VALIDATIONS", 10)
        yield


@pytest.fixture
def all_validations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs validate and save as often as for users."""
    monkeypatch.setattr(schedule, "_VALIDATIONS", VALIDATIONS)


@pytest.fixture(autouse=True)
def no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no curve, which would take a quarter of their time; fixtures of modules and the session do."""
    monkeypatch.setattr(glowserve_training.run, "draw_curve", lambda *_: None)


@pytest.fixture
def generator() -> torch.Generator:
    """Random numbers for tensors, the same in every run."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def perturb(generator: torch.Generator) -> Perturb:
    """Adds a normal random number to every parameter, so that none keeps its initial 0 or 1."""

    @torch.no_grad()
    def add_noise(module: nn.Module, std: float = 0.2) -> None:
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(std * noise.to(parameter.dtype))

    return add_noise


@pytest.fixture
def jacobian_log_det() -> JacobianLogDet:
    """log|det| of the Jacobian by autograd, for each image, [N]."""

    def compute(bijector: Bijector, x: Tensor) -> Tensor:
        def one(image: Tensor) -> Tensor:
            return bijector(image[None])[0].flatten()

        jacobians = [torch.func.jacrev(one)(image).reshape(image.numel(), image.numel()) for image in x]
        return torch.linalg.slogdet(torch.stack(jacobians).detach()).logabsdet

    return compute


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz file of 120 digits, which loads fast."""
    images = load_images(DataConfig(data="digits", image_size=8, channels=1)).train[:120]
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, images=images)
    return path


@pytest.fixture(scope="session")
def tiny_run(few_digits: Path) -> TinyRun:
    """The configuration of a run of half a second: 20 steps, checked, validated and saved after every second."""

    def configure(**changes: object) -> RunConfig:
        sizes = {"n_bits": 4, "levels": 2, "steps_per_level": 1, "width": 4, "steps": 20, "batch_size": 16}
        return run_config(str(few_digits), **(PLAIN | sizes | changes))

    return configure


@pytest.fixture(scope="session")
def uninterrupted(
    few_validations: None, tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory
) -> Uninterrupted:
    """The tiny run without any disturbance. Tests do not write to it."""
    recorder = Recorder()
    return Uninterrupted(
        run(tiny_run(), tmp_path_factory.mktemp("uninterrupted") / "run", [recorder]), recorder
    )
