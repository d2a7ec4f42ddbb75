"""A runner whose images have given classes: what it scores is log p(x | c)."""

from __future__ import annotations

from typing import Any

import numpy as np

from glowserve.images import UInt8Array
from glowserve.runtime.classes import given_classes, scorer_given_class
from glowserve.runtime.engine import Float32Array, Forward, Int64Array
from glowserve.runtime.runner import Float64Array, Runner, Work
from glowserve.scores import Likelihoods, Scores


class GivenClasses:
    """Runs the rows of a request on another runner, and conditions the output on the classes of its images.

    Args:
        runner: runs the model.
        classes: of the images of the request, by number, [N].

    Raises:
        NotCalibratedError: the bundle has no calibration of images given their classes.
    """

    def __init__(self, runner: Runner, classes: Int64Array) -> None:
        self._runner, self._classes = runner, classes
        self.scorer = scorer_given_class(runner.bundle, runner.class_scorer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def scored(self, scores: Scores) -> None:
        """See Runner. Does nothing: the model's traffic is compared with images whose classes are not given."""

    async def forward(self, images: UInt8Array, noise: Float32Array) -> Forward:
        """See Runner. The images are those of the request, once or several times in their order."""
        forward = await self._runner.forward(images, noise)
        repeats = len(images) // len(self._classes)
        return given_classes(forward, np.tile(self._classes, repeats), self._runner.bundle)

    async def score(self, images: UInt8Array, noise: Float32Array) -> tuple[Forward, Likelihoods]:
        """See Runner."""
        forward = await self.forward(images, noise)
        return forward, self.scorer.likelihoods(forward.log_likelihood)

    async def p_values(self, images: UInt8Array, forward: Forward) -> Float64Array:
        """See Runner."""
        return await self._runner.compute(
            Work(
                lambda: self.scorer.p_values(self.scorer.parts(forward, images)),
                len(images),
                forward.latent.nbytes,
            )
        )
