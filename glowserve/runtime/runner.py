"""What runs the rows of a request, forward or in reverse: the engine itself, or a service that batches.

The operations are coroutines over a `Runner`. A service's runner waits for its batches. The engine's never waits, so
that `run_now` drives such a coroutine to its end without an event loop.

Shapes: N images, H W C, D = H * W * C.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, fields
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from glowserve.images import UInt8Array
from glowserve.runtime.config import Limits
from glowserve.runtime.engine import Engine, Float32Array, Forward, Reverse
from glowserve.runtime.repository import Bundle
from glowserve.scores import Scorer

T = TypeVar("T")

PREPARATION, SERIALIZATION = "preparation", "serialization"
"""Stages of a call: making arrays of a request, and making a response of arrays."""


@dataclass(frozen=True)
class Work(Generic[T]):
    """CPU work beside a run of a graph: decoding pictures, drawing noise, writing PNG files."""

    function: Callable[[], T]

    images: int
    """How many images it is about."""

    size: int
    """About how many bytes it goes through: little work is not worth another thread."""

    stage: str = PREPARATION
    """PREPARATION or SERIALIZATION."""


class Runner(Protocol):
    """Runs one bundle on the rows of one request."""

    @property
    def bundle(self) -> Bundle:
        """What is run."""

    @property
    def scorer(self) -> Scorer:
        """Turns the numbers of its forward graph into scores."""

    @property
    def limits(self) -> Limits:
        """How much a request may bring or ask for."""

    def expect(self, images: int) -> None:
        """Called once a request is valid, before its work begins, with the images that it brings or asks for."""

    async def compute(self, work: Work[T]) -> T:
        """The result of CPU work."""

    async def forward(self, images: UInt8Array, noise: Float32Array) -> Forward:
        """Runs the forward graph on images, uint8 [N, H, W, C], and noise, float32 [N, H, W, C]."""

    async def reverse(self, latents: Float32Array) -> Reverse:
        """Runs the reverse graph on latents, float32 [N, D]."""


class EngineRunner:
    """Runs rows on an engine in the caller's thread, some at a time.

    Args:
        bundle: what the engine runs.
        engine: the engine.
        limits: how much a request may bring or ask for.
    """

    def __init__(self, bundle: Bundle, engine: Engine, limits: Limits) -> None:
        self.bundle = bundle
        self.scorer = Scorer(bundle.manifest)
        self.limits = limits
        self._engine = engine

    def expect(self, images: int) -> None:
        """See Runner: nobody counts here."""

    async def compute(self, work: Work[T]) -> T:
        """See Runner."""
        return work.function()

    async def forward(self, images: UInt8Array, noise: Float32Array) -> Forward:
        """See Runner."""
        return _joined(
            Forward, [self._engine.forward(images[part], noise[part]) for part in self._parts(images)]
        )

    async def reverse(self, latents: Float32Array) -> Reverse:
        """See Runner."""
        return _joined(Reverse, [self._engine.reverse(latents[part]) for part in self._parts(latents)])

    def _parts(self, rows: UInt8Array | Float32Array) -> list[slice]:
        size = self.limits.max_batch_size
        return [slice(first, first + size) for first in range(0, len(rows), size)]


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits, such as an operation over an `EngineRunner`."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("the coroutine waits for something; it needs an event loop")


Results = TypeVar("Results", Forward, Reverse)


def _joined(kind: type[Results], parts: list[Results]) -> Results:
    if len(parts) == 1:
        return parts[0]
    return kind(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(kind)))
