"""Folds the priors of class-conditional models of public implementations.

The flow is standardized with a mean and a log-scale that all classes have in common; each class has what it differs by.

Shapes: K classes, C H W of a level's latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glowserve_export.classes import FoldedClasses
from glowserve_export.convolution import Float64Array


@dataclass(frozen=True)
class ClassPrior:
    """The prior of a level's latents for each class."""

    mean: Float64Array
    """[K, C, H, W], or of a shape that broadcasts to it."""

    log_scale: Float64Array
    """The same."""

    common: tuple[Float64Array, Float64Array]
    """Mean and log-scale that the flow is standardized with, [C, H, W] or of a shape that broadcasts to it."""

    @classmethod
    def of(cls, mean: Float64Array, log_scale: Float64Array) -> ClassPrior:
        """With what the classes have in common on average."""
        return cls(mean, log_scale, (mean.mean(axis=0), log_scale.mean(axis=0)))

    def differences(self, classes: int, shape: tuple[int, int, int]) -> tuple[Float64Array, Float64Array]:
        """Mean and log-scale of the standardized latents of each class, [K, C * H * W]."""
        mean, log_scale = self.common
        found = (self.mean - mean) / np.exp(log_scale), self.log_scale - log_scale
        first, second = (np.broadcast_to(each, (classes, *shape)).reshape(classes, -1) for each in found)
        return first, second


def fold_class_priors(
    classes: int, levels: Sequence[ClassPrior | None], shapes: Sequence[tuple[int, int, int]]
) -> FoldedClasses:
    """The classes of a model, all with the same share: no checkpoint has the labels of its training images.

    Args:
        classes: K.
        levels: the prior of each level, level 1 first; None where it is the same for all classes.
        shapes: [C, H, W] of each level's latents.
    """
    sizes = tuple(math.prod(shape) for shape in shapes)
    same = [(np.zeros((classes, size)),) * 2 for size in sizes]
    found = [
        zeros if level is None else level.differences(classes, shape)
        for level, shape, zeros in zip(levels, shapes, same, strict=True)
    ]
    mean, log_scale = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
    return FoldedClasses(mean, log_scale, np.full(classes, -math.log(classes)), sizes)


def class_names(classes: int) -> tuple[str, ...]:
    """The names of the classes of a checkpoint, which knows their numbers only."""
    return tuple(map(str, range(classes)))
