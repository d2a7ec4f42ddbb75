"""A model as the front sees it, whether this process serves it or another one does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from types import TracebackType
from typing import Protocol

from prometheus_client import Counter

from glowserve.images import UInt8Array
from glowserve.runtime.attributes import Attributes
from glowserve.runtime.engine import Float32Array, Forward, Placement
from glowserve.runtime.repository import Bundle
from glowserve.runtime.runner import Float64Array
from glowserve.scores import Scorer
from glowserve_service.observability.metrics import Metrics
from glowserve_service.scheduling.engine_threads import Array
from glowserve_service.scheduling.joint_work import JointWork
from glowserve_service.scheduling.submission import Answer
from glowserve_service.scheduling.ticket import Ticket


class RowRunner(Protocol):
    """Runs rows of one direction."""

    async def run(self, *rows: Array, ticket: Ticket) -> Answer:
        """Runs a caller's rows; raises as `Batcher.submit`."""


class ExplainerOpening(Protocol):
    """Opens what `explain` runs."""

    async def wait(self) -> None:
        """See `Opening.wait`."""


class TrafficCounter(Protocol):
    """Counts scored images."""

    def add(self, bits_per_dim: Float64Array, p_values: Float64Array | None = None) -> None:
        """See `Traffic.add`."""


class Model:
    """One version of a model, and the leases of the calls that use it. Subclasses run its rows.

    Args:
        bundle: its bundle.
        scorer: the bundle's.
        class_scorer: the bundle's, of images whose classes are given; None if it has none.
        attributes: the bundle's.
        placements: which providers run its graphs.
        instances: batches that run side by side.
        max_batch_size: most images for which p-values are computed at once, unless a caller has more.
        metrics: where images are counted.
    """

    forward: RowRunner
    """From images [N, H, W, C] and noise to the arrays of `Forward` and of `Likelihoods`, in their order; without
    `log_posterior` of a model without classes."""
    reverse: RowRunner
    """From latents [N, D], with classes also their numbers [N], to the two arrays of `Reverse`, in its order."""
    explain: RowRunner
    """From images [N, H, W, C] and noise to deviations [N, H, W], once it is open."""
    opening: ExplainerOpening
    """Opens what `explain` runs, at the first call for it."""
    traffic: TrafficCounter
    """What the images that it has scored look like."""

    def __init__(
        self,
        bundle: Bundle,
        scorer: Scorer,
        class_scorer: Scorer | None,
        attributes: Attributes,
        placements: Sequence[Placement],
        *,
        instances: int,
        max_batch_size: int,
        metrics: Metrics,
    ) -> None:
        self.bundle, self.manifest = bundle, bundle.manifest
        self.name, self.version = self.manifest.model, self.manifest.version
        self.scorer, self.class_scorer, self.attributes = scorer, class_scorer, attributes
        self.placements = placements
        """Which providers run its graphs."""
        self.instances = instances
        """Batches that run side by side."""
        self.not_finite: Callable[[str], Counter] = cache(partial(metrics.not_finite.labels, self.name))
        """By method: how many images had a score, an encoding or a decoding that was not finite."""
        self.redrawn = metrics.redrawn_samples.labels(self.name)
        """How often a sample was drawn again."""
        self.inexact_encodings = metrics.inexact_encodings.labels(self.name)
        """How many encodings did not decode to their image."""
        self.p_values = JointWork(partial(_p_values, scorer), max_batch_size)
        """From images [N, H, W, C] and the arrays of `Forward` to `anomaly_p_value`, [N]."""
        self._leases = 0
        self._unleased = asyncio.Event()

    def lease(self) -> Lease:
        """Keeps it open for a call: `async with model.lease()`."""
        return Lease(self)

    def hold(self) -> None:
        """Keeps it open until `release`."""
        self._leases += 1

    def release(self) -> None:
        """Ends a hold."""
        self._leases -= 1
        if not self._leases:
            self._unleased.set()

    async def unleased(self) -> None:
        """Returns when nobody holds it."""
        while self._leases:
            self._unleased.clear()
            await self._unleased.wait()


class Lease:
    """Keeps a model open inside `async with`."""

    def __init__(self, model: Model) -> None:
        self._model = model

    async def __aenter__(self) -> Model:
        self._model.hold()
        return self._model

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._model.release()


class Models(Protocol):
    """The models that are served: see `ModelRegistry`."""

    def __iter__(self) -> Iterator[Model]:
        """By name, then version."""

    def names(self) -> set[str]:
        """The names of the models."""

    def versions(self, name: str) -> Mapping[int, Model]:
        """The served versions of a model, ascending."""

    def find(self, name: str, version: int) -> Model:
        """See `ModelRegistry.find`."""

    def lease(self, name: str, version: int) -> Lease:
        """See `ModelRegistry.lease`."""


def _p_values(scorer: Scorer, images: UInt8Array, *forward: Float32Array) -> Float64Array:
    return scorer.p_values(scorer.parts(Forward(*forward), images))
