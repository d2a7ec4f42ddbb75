"""The classes of a class-conditional model as float64 arrays, and their nodes; see `glowserve_training.layers.classes`.

The graphs take the latents for standard normal, whatever the class. forward.onnx then adds what the classes make of
their density; reverse.onnx first gives the latents of an image the mean and the scale of its class.

Shapes: N images, K classes, L levels, D latents of all levels, D_l of level l.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from glowserve_training.layers.classes import ClassPriors, Mixture, log_ratios, mixture
from torch import Tensor

from glowserve.runtime.engine import Int64Array
from glowserve_export.builder import GraphBuilder
from glowserve_export.convolution import Float64Array, FoldedConv, as_array


@dataclass(frozen=True)
class ClassNodes:
    """The classes in a graph."""

    total: str
    """What they add to the log-likelihood, [N, 1]."""

    by_level: list[str]
    """The same by level, [N, 1] each, as `mixture` divides it."""

    posterior: str
    """p(c | x), [N, K]; its logarithm is the tensor "log_posterior"."""


@dataclass(frozen=True)
class FoldedClasses:
    """The density of the latents of each class."""

    mean: Float64Array
    """[K, D]."""

    log_scale: Float64Array
    """[K, D]."""

    log_share: Float64Array
    """log p(c), [K]."""

    sizes: tuple[int, ...]
    """D_l of each level, level 1 first."""

    @classmethod
    def of(cls, priors: ClassPriors, sizes: Sequence[int]) -> FoldedClasses:
        """Of a model in float64."""
        return cls(
            as_array(priors.means()), as_array(priors.log_scales()), as_array(priors.log_share), tuple(sizes)
        )

    def __len__(self) -> int:
        return len(self.mean)

    def mixture(self, latents: Sequence[Tensor]) -> Mixture:
        """In float64, of each level's latents, [N, D_l]."""
        device = latents[0].device
        mean, log_scale, log_share = (
            torch.from_numpy(each).to(device) for each in (self.mean, self.log_scale, self.log_share)
        )
        return mixture(log_ratios(latents, mean, log_scale), log_share)

    def place(self, latent: Float64Array, classes: Int64Array) -> Float64Array:
        """Standard normal latents [N, D] as those of classes, [N]; of class -1 they are as they were."""
        own = (classes >= 0)[:, None]
        scale = np.where(own, np.exp(self.log_scale[classes]), 1.0)
        return np.where(own, self.mean[classes], 0.0) + latent * scale

    def add_forward(self, g: GraphBuilder, latents: Sequence[str]) -> ClassNodes:
        """The nodes of `mixture`, of each level's latents, [N, D_l]."""
        ratios = [self._add_log_ratio(g, latent, level) for level, latent in enumerate(latents)]
        joint = g.add(
            "Sum", [*ratios, g.constant("classes.log_share", self.log_share[None, :])], "classes.joint"
        )
        most = g.add(
            "ReduceMax", [joint, g.constant("classes.axis", np.array([1]))], "classes.max", keepdims=1
        )
        exp = g.add("Exp", [g.add("Sub", [joint, most], "classes.below")], "classes.exp")
        rest = g.add("Log", [self._add_sum(g, exp, "classes.sum")], "classes.log_sum")
        total = g.add("Add", [most, rest], "classes.total")
        log_posterior = g.add("Sub", [joint, total], "log_posterior")
        posterior = g.add("Exp", [log_posterior], "posterior")
        by_level, top = [], total
        for ratio in ratios[:-1]:
            weighted = g.add("Mul", [posterior, ratio], f"{ratio}.weighted")
            by_level.append(self._add_sum(g, weighted, f"{ratio}.mean"))
            top = g.add("Sub", [top, by_level[-1]], f"{ratio}.above")
        return ClassNodes(total, [*by_level, top], posterior)

    def add_places(
        self, g: GraphBuilder, nodes: ClassNodes, level: int, latent: str, square: str, shape: Sequence[int]
    ) -> str:
        """The nodes of what a level's latents and their squares, [N, C, H, W] each, add to the log-likelihood.

        Each latent adds the mean over the posterior of log N(e; m_c, s_c) - log N(e; 0, 1). Their sum is not the whole:
        see `mixture`.
        """
        name = f"classes.level{level + 1}"
        column = g.constant("classes.column", np.array([0, len(self), 1, 1]))
        posterior = g.add("Reshape", [nodes.posterior, column], f"{name}.posterior")
        weights = np.concatenate(self._coefficients(level), axis=1)
        x = g.conv(
            posterior, FoldedConv(weights.T[:, :, None, None], np.zeros(weights.shape[1])), f"{name}.terms"
        )
        channels, *sides = shape
        x = g.add(
            "Reshape", [x, g.constant(f"{name}.shape", np.array([0, 3 * channels, *sides]))], f"{name}.planes"
        )
        on_square, on_latent, constant = g.split(x, [channels] * 3, f"{name}.coefficients")
        terms = [
            g.add("Mul", [on_square, square], f"{name}.on_square"),
            g.add("Mul", [on_latent, latent], f"{name}.on_latent"),
            constant,
        ]
        return g.add("Sum", terms, f"{name}.places")

    def add_reverse(self, g: GraphBuilder, latent: str, classes: str) -> str:
        """The nodes of `place`. Index -1 is the last row of a table."""
        none = np.zeros((1, self.mean.shape[1]))
        means, scales = np.concatenate([self.mean, none]), np.exp(np.concatenate([self.log_scale, none]))
        mean = g.add("Gather", [g.constant("classes.means", means), classes], "classes.mean", axis=0)
        scale = g.add("Gather", [g.constant("classes.scales", scales), classes], "classes.scale", axis=0)
        return g.add("Add", [g.add("Mul", [latent, scale], "classes.scaled"), mean], "classes.placed")

    def _add_log_ratio(self, g: GraphBuilder, latent: str, level: int) -> str:
        """Log N(e; m_c, s_c) - log N(e; 0, 1) of a level's latents [N, D_l], [N, K].

        A convolution of one position computes one image after the other, in the same order in every batch.
        """
        name, size = f"classes.level{level + 1}", self.sizes[level]
        on_square, on_latent, constant = self._coefficients(level)
        square = g.add("Mul", [latent, latent], f"{name}.square")
        x = g.add("Concat", [square, latent], f"{name}.both", axis=1)
        x = g.add(
            "Reshape", [x, g.constant(f"{name}.column", np.array([0, 2 * size, 1, 1]))], f"{name}.input"
        )
        weights = np.concatenate((on_square, on_latent), axis=1)
        x = g.conv(x, FoldedConv(weights[:, :, None, None], constant.sum(1)), f"{name}.conv")
        return g.add("Flatten", [x], name, axis=1)

    def _add_sum(self, g: GraphBuilder, x: str, name: str) -> str:
        """The sums of rows [N, K], [N, 1]."""
        x = g.padded_rows(x, len(self), name)
        return g.add("ReduceSum", [x, g.constant("classes.axis", np.array([1]))], name, keepdims=1)

    def _coefficients(self, level: int) -> tuple[Float64Array, Float64Array, Float64Array]:
        """a, b and c of log N(e; m_c, s_c) - log N(e; 0, 1) = a e^2 + b e + c at each latent of a level, [K, D_l]."""
        first = sum(self.sizes[:level])
        own = slice(first, first + self.sizes[level])
        mean, log_scale = self.mean[:, own], self.log_scale[:, own]
        precision = np.exp(-2 * log_scale)
        return (1 - precision) / 2, precision * mean, -(precision * mean**2 / 2 + log_scale)
