"""The interface between the operations and what runs a model: an engine in this process, or the service's batcher.

The operations are coroutines that await a `Runner`. The service's runner suspends them until a batch has run. The
engine's runner never suspends, so that `run_now` runs an operation without an event loop.

Shapes: N images, H W C, D = H * W * C.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import fields
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array
from glowserve.pictures import Pictures
from glowserve.runtime.attributes import Attributes, bundle_attributes
from glowserve.runtime.calibration import open_class_scorer, open_scorer
from glowserve.runtime.config import Limits
from glowserve.runtime.engine import Engine, Float32Array, Forward, Int64Array, Reverse
from glowserve.runtime.explanation import Explainer
from glowserve.runtime.repository import Bundle
from glowserve.scores import Likelihoods, Scorer, Scores

T = TypeVar("T")
Float64Array = npt.NDArray[np.float64]

PREPARATION, SERIALIZATION = "preparation", "serialization"
"""The stages of a call with CPU work: from request to arrays, and from arrays to response."""


class Work(NamedTuple, Generic[T]):
    """CPU work outside the graphs: reading tensors, computing noise, encoding PNG files. How long it takes is known."""

    function: Callable[[], T]
    """Does the work, and returns its result."""

    images: int
    """The number of images."""

    size: int
    """Roughly how many bytes the work processes. Little work is not worth another thread."""

    stage: str = PREPARATION
    """PREPARATION or SERIALIZATION."""


class Runner(Protocol):
    """Runs one model on the rows of one request."""

    @property
    def bundle(self) -> Bundle:
        """The model's bundle."""

    @property
    def scorer(self) -> Scorer:
        """Computes scores from the output of the forward graph."""

    @property
    def class_scorer(self) -> Scorer | None:
        """Computes scores of images whose classes are given; None if the bundle has no calibration of that kind."""

    @property
    def attributes(self) -> Attributes:
        """The bundle's."""

    @property
    def limits(self) -> Limits:
        """The limits of one request."""

    def expect(self, images: int) -> None:
        """Announces the number of images in a valid request and its response, before the work begins."""

    def redrawn(self, samples: int) -> None:
        """Announces that so many samples were not finite and are drawn again."""

    def scored(self, scores: Scores) -> None:
        """Announces the scores of the request's images."""

    async def compute(self, work: Work[T]) -> T:
        """Does CPU work, and returns its result."""

    async def decode(self, pictures: Pictures) -> UInt8Array:
        """Decodes pictures to images, uint8 [N, H, W, C]. Raises InvalidPictureError."""

    async def forward(self, images: UInt8Array, noise: Float32Array) -> Forward:
        """Runs the forward graph on images, uint8 [N, H, W, C], and noise, float32 [N, H, W, C]."""

    async def score(self, images: UInt8Array, noise: Float32Array) -> tuple[Forward, Likelihoods]:
        """Runs the forward graph likewise, and computes the scores that are in every answer."""

    async def p_values(self, images: UInt8Array, forward: Forward) -> Float64Array:
        """`anomaly_p_value` of images, [N], from the output of the forward graph with the noise of the default seed."""

    async def reverse(self, latents: Float32Array, classes: Int64Array | None = None) -> Reverse:
        """Runs the reverse graph on latents, float32 [N, D], and classes; see `Engine.reverse`."""

    async def open_explainer(self) -> None:
        """Opens what `explain` runs, unless it is open. Raises MissingFileError, BundleError, DeviceError."""

    async def explain(self, images: UInt8Array, noise: Float32Array) -> Float32Array:
        """Deviations, float32 [N, H, W], as `Explainer.explain`. To be called after `open_explainer`."""


class EngineRunner:
    """Runs rows on an engine in the caller's thread, in batches of at most `limits.max_batch_size` rows.

    Args:
        bundle: the engine's bundle.
        engine: the engine.
        limits: the limits of one request and of one batch.
        scorer: the bundle's; None to read it.

    Raises:
        BundleError: the bundle's calibration, or its attributes, are damaged.
    """

    def __init__(self, bundle: Bundle, engine: Engine, limits: Limits, scorer: Scorer | None = None) -> None:
        self.bundle = bundle
        self.scorer = scorer or open_scorer(bundle)
        self.class_scorer = open_class_scorer(bundle)
        self.attributes = bundle_attributes(bundle)
        self.limits = limits
        self._engine = engine
        self._explainer = Explainer(bundle, engine)

    def expect(self, images: int) -> None:
        """See Runner. Does nothing: there are no metrics here."""

    def redrawn(self, samples: int) -> None:
        """See Runner. Does nothing, either."""

    def scored(self, scores: Scores) -> None:
        """See Runner. Does nothing, either."""

    async def compute(self, work: Work[T]) -> T:
        """See Runner."""
        return work.function()

    async def decode(self, pictures: Pictures) -> UInt8Array:
        """See Runner."""
        return pictures.decode()

    async def forward(self, images: UInt8Array, noise: Float32Array) -> Forward:
        """See Runner."""
        return _concatenate(
            Forward, [self._engine.forward(images[part], noise[part]) for part in self._batches(images)]
        )

    async def score(self, images: UInt8Array, noise: Float32Array) -> tuple[Forward, Likelihoods]:
        """See Runner."""
        forward = await self.forward(images, noise)
        return forward, self.scorer.likelihoods(forward.log_likelihood)

    async def p_values(self, images: UInt8Array, forward: Forward) -> Float64Array:
        """See Runner."""
        return self.scorer.p_values(self.scorer.parts(forward, images))

    async def reverse(self, latents: Float32Array, classes: Int64Array | None = None) -> Reverse:
        """See Runner."""
        parts = [
            self._engine.reverse(latents[part], *(() if classes is None else (classes[part],)))
            for part in self._batches(latents)
        ]
        return _concatenate(Reverse, parts)

    async def open_explainer(self) -> None:
        """See Runner."""
        self._explainer.open()

    async def explain(self, images: UInt8Array, noise: Float32Array) -> Float32Array:
        """See Runner."""
        parts = [self._explainer.explain(images[part], noise[part]) for part in self._batches(images)]
        return np.concatenate(parts)

    def _batches(self, rows: UInt8Array | Float32Array) -> list[slice]:
        size = self.limits.max_batch_size
        return [slice(first, first + size) for first in range(0, len(rows), size)]


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that never suspends, such as an operation on an `EngineRunner`, without an event loop.

    Raises:
        RuntimeError: the coroutine suspends. The errors of the coroutine are raised, too.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("the coroutine waits for something; run it in an event loop")


Results = TypeVar("Results", Forward, Reverse)


def _concatenate(kind: type[Results], parts: list[Results]) -> Results:
    if len(parts) == 1:
        return parts[0]
    columns: list[list[Any]] = [[getattr(part, each.name) for part in parts] for each in fields(kind)]
    arrays: list[Any] = [None if column[0] is None else np.concatenate(column) for column in columns]
    return kind(*arrays)
