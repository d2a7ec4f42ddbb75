"""Small models and images for the tests of the whole flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from glowserve_training.config import GlowConfig
from glowserve_training.model import Glow
from torch import Tensor

T = TypeVar("T")


def tiny(**changes: object) -> GlowConfig:
    sizes = {"image_size": 8, "channels": 1, "levels": 2, "steps_per_level": 2, "width": 6}
    return GlowConfig(**(sizes | changes))  # type: ignore[arg-type]


def in_double(make: Callable[..., T], *args: object, **kwargs: object) -> T:
    """Makes a layer in float64: a matrix made in float32 is orthogonal only to 1e-7, even if converted later."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return make(*args, **kwargs)
    finally:
        torch.set_default_dtype(before)


def random_images(config: GlowConfig, n: int, generator: torch.Generator) -> Tensor:
    """Uniformly random images, uint8 [N, H, W, C]."""
    shape = (n, *config.image_shape)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def initialized(config: GlowConfig, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Glow:
    """A model in evaluation mode whose actnorms were initialized by random images."""
    model = in_double(Glow, config) if dtype == torch.float64 else Glow(config).to(dtype)
    images = random_images(config, 32, generator)
    model.log_prob(images, torch.rand(images.shape, generator=generator, dtype=dtype))
    return model.eval()
