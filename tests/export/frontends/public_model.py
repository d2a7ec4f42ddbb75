"""The common part of the public Glows, rewritten to test their frontends against: same keys, same arithmetic.

Shapes: N images; y [N, C, H, W], an image as the model sees it; z and eps [N, C, H, W] of a level.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Flowed(NamedTuple):
    """The latents and the log-density of images."""

    z: list[Tensor]
    """Of each level, level 1 first."""

    eps: list[Tensor]
    """z standardized by its prior."""

    log_density: Tensor
    """Of y, nats, [N]."""


class Gaussian(NamedTuple):
    """A prior."""

    mean: Tensor
    log_scale: Tensor

    def standardize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Eps and the log-density of z, [N]."""
        eps = (z - self.mean) / self.log_scale.exp()
        nats = -0.5 * eps**2 - self.log_scale - 0.5 * math.log(2 * math.pi)
        return eps, nats.sum((1, 2, 3))

    def unstandardize(self, eps: Tensor) -> Tensor:
        """The inverse: z of eps."""
        return self.mean + self.log_scale.exp() * eps


class PublicModel(nn.Module, ABC):
    """The common part: levels of steps, and quantization."""

    kind: str
    arguments: dict[str, Any]
    """The arguments of the constructor, as JSON."""

    centre: float = 0.5
    """What is subtracted from an image in [0, 1]."""

    def greys(self, n_bits: int) -> float:
        """The number of grey values in [0, 1], the last of which may be cut off."""
        return 2.0**n_bits

    @abstractmethod
    def steps(self, level: int) -> list[nn.Module]:
        """The steps of flow of a level."""

    @abstractmethod
    def levels(self) -> int:
        """The number of levels."""

    @abstractmethod
    def prior(self, level: int, continuing: Tensor) -> Gaussian:
        """The prior of a level's z given the continuing channels; at the top, z: only its shape counts."""

    def forward(self, y: Tensor) -> Flowed:
        zs, all_eps, total, x = [], [], y.new_zeros(len(y)), y
        for i in range(self.levels()):
            x = F.pixel_unshuffle(x, 2)
            for step in self.steps(i):
                x, log_det = step(x)
                total = total + log_det
            z = x
            if i < self.levels() - 1:
                x, z = x.tensor_split(2, dim=1)
            eps, nats = self.prior(i, x).standardize(z)
            zs.append(z)
            all_eps.append(eps)
            total = total + nats
        return Flowed(zs, all_eps, total)

    def inverse(self, eps: list[Tensor]) -> Tensor:
        top = self.levels() - 1
        x = self.prior(top, eps[top]).unstandardize(eps[top])
        for i in reversed(range(self.levels())):
            if i < top:
                x = torch.cat((x, self.prior(i, x).unstandardize(eps[i])), dim=1)
            for step in reversed(self.steps(i)):
                x = step.undo(x)  # type: ignore[operator]
            x = F.pixel_shuffle(x, 2)
        return x

    def flowed(self, images: np.ndarray, noise: np.ndarray, n_bits: int) -> Flowed:
        """Of uint8 images and noise, [N, H, W, C]; here log_density is that of the discrete images."""
        q = torch.from_numpy(images // 2 ** (8 - n_bits)).double()
        greys = self.greys(n_bits)
        y = (q + torch.from_numpy(noise).double()) / greys - self.centre
        flowed = self(y.permute(0, 3, 1, 2))
        return flowed._replace(log_density=flowed.log_density - math.log(greys) * math.prod(images.shape[1:]))

    def in_bins(self, y: Tensor, n_bits: int) -> np.ndarray:
        """Decoded images in bins, in the order of the axes of y."""
        return (y.numpy() + self.centre) * self.greys(n_bits)


def random_lu(channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """P, L, U, and the log and sign of U's diagonal, of a well-conditioned random matrix."""
    p, lower, upper = torch.linalg.lu(random_matrix(channels))
    # In a checkpoint, the entries that the models mask are not zero.
    junk = torch.randn(channels, channels)
    diagonal = upper.diagonal()
    return p, lower + junk.triu(), upper.triu(1) + junk.tril(), diagonal.abs().log(), diagonal.sign()


def random_matrix(channels: int) -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(channels, channels))
    return q + 0.1 * torch.randn(channels, channels)


def mix(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("oc,nchw->nohw", matrix, x)
