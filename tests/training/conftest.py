"""What the tests of the training room share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from glowserve_training.config import RunConfig
from glowserve_training.layers import Bijector
from glowserve_training.presets import run_config
from torch import Tensor, nn

from glowserve.images import UInt8Array

Perturb = Callable[..., None]
JacobianLogDet = Callable[[Bijector, Tensor], Tensor]
TinyRun = Callable[..., RunConfig]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Models this small are slower on two threads than on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The weights that a test begins with are the same in every run."""
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    """Random numbers for tensors, the same in every run."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def perturb(generator: torch.Generator) -> Perturb:
    """Moves every parameter of a module by a normal random number: nothing that began as zero or one stays so."""

    @torch.no_grad()
    def move(module: nn.Module, std: float = 0.2) -> None:
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(std * noise.to(parameter.dtype))

    return move


@pytest.fixture
def jacobian_log_det() -> JacobianLogDet:
    """log|det| of the Jacobian that autograd finds, image by image, [N]."""

    def compute(bijector: Bijector, x: Tensor) -> Tensor:
        def one(image: Tensor) -> Tensor:
            return bijector(image[None])[0].flatten()

        jacobians = [torch.func.jacrev(one)(image).reshape(image.numel(), image.numel()) for image in x]
        return torch.linalg.slogdet(torch.stack(jacobians).detach()).logabsdet

    return compute


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """An .npz file of 120 digits, so that a run reads it in no time."""
    from glowserve_training.data import DataConfig, load_images

    images: UInt8Array = load_images(DataConfig(data="digits", image_size=8, channels=1)).train[:120]
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, images=images)
    return path


@pytest.fixture(scope="session")
def tiny_run(few_digits: Path) -> TinyRun:
    """The configuration of a run of a second: 42 steps, validated and saved at every other."""

    def configure(**changes: object) -> RunConfig:
        sizes = {"n_bits": 4, "levels": 2, "steps_per_level": 1, "width": 4, "steps": 42, "batch_size": 16}
        return run_config(str(few_digits), **(sizes | changes))

    return configure
