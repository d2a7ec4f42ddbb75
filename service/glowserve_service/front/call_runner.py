"""Runs the rows of one request of a call in a model's lanes: a service's `Runner`."""

from __future__ import annotations

from types import TracebackType
from typing import TypeVar

import numpy as np

from glowserve.images import UInt8Array
from glowserve.pictures import Pictures
from glowserve.runtime.attributes import Attributes
from glowserve.runtime.config import Limits
from glowserve.runtime.engine import Float32Array, Forward, Int64Array, Reverse
from glowserve.runtime.errors import NotFiniteError
from glowserve.runtime.repository import Bundle
from glowserve.runtime.runner import PREPARATION, Float64Array, Work
from glowserve.scores import Likelihoods, Scorer, Scores
from glowserve_service.front.call import Call
from glowserve_service.models.model import Lease, Model, RowRunner
from glowserve_service.scheduling.cpu_pool import CpuPool
from glowserve_service.scheduling.engine_threads import Array, Rows
from glowserve_service.scheduling.ticket import Ticket

T = TypeVar("T")

# How many of the arrays of a forward batch are `Likelihoods`, after those of `Forward`.
_LIKELIHOODS = len(Likelihoods._fields)


class CallRunner:
    """Leases a model and runs rows in it: `async with CallRunner(...) as runner`.

    Args:
        lease: of the model.
        call: to which times, images and the model are added.
        ticket: of the request's first piece of work.
        pool: where CPU work is done.
        limits: of the request.
    """

    def __init__(self, lease: Lease, call: Call, ticket: Ticket, pool: CpuPool, limits: Limits) -> None:
        self._lease = lease
        self._call = call
        self._pool_ticket = self._lane_ticket = ticket
        self._pool = pool
        self.limits = limits

    async def __aenter__(self) -> CallRunner:
        self.model: Model = await self._lease.__aenter__()
        self._call.models.add((self.model.name, self.model.version))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._lease.__aexit__(kind, error, trace)
        if isinstance(error, NotFiniteError):
            self.count_not_finite(error.images)

    def part(self, ticket: Ticket) -> CallRunner:
        """A runner for another piece of work of the same call, under the same lease."""
        runner = CallRunner(self._lease, self._call, ticket, self._pool, self.limits)
        runner.model = self.model
        return runner

    @property
    def bundle(self) -> Bundle:
        """See Runner."""
        return self.model.bundle

    @property
    def scorer(self) -> Scorer:
        """See Runner."""
        return self.model.scorer

    @property
    def class_scorer(self) -> Scorer | None:
        """See Runner."""
        return self.model.class_scorer

    @property
    def attributes(self) -> Attributes:
        """See Runner."""
        return self.model.attributes

    def expect(self, images: int) -> None:
        """See Runner: adds to the images of the call."""
        self._call.images += images

    def redrawn(self, samples: int) -> None:
        """See Runner: counts them."""
        self.model.redrawn.inc(samples)

    def scored(self, scores: Scores) -> None:
        """See Runner: adds them to the model's traffic."""
        self.model.traffic.add(scores.bits_per_dim, scores.anomaly_p_value)

    def count_not_finite(self, images: int) -> None:
        """Counts images that had a score, an encoding or a decoding that was not finite, and samples without one."""
        counter = self.model.not_finite(self._call.method)  # from the first call on there is a series
        if images:
            self._call.not_finite += images
            counter.inc(images)

    async def compute(self, work: Work[T]) -> T:
        """See Runner; raises QueueFullError."""
        if not work.size:  # such as the images of a tensor, which lie in the request as they are
            return work.function()
        with self._call.timed(work.stage):
            result = await self._pool.run(
                self._call.holding.kept(work.function), self._pool_ticket, images=work.images, size=work.size
            )
        self._pool_ticket = self._pool_ticket.later
        return result

    async def decode(self, pictures: Pictures) -> UInt8Array:
        """See Runner; raises QueueFullError, too."""
        with self._call.timed(PREPARATION):
            images = await self._pool.decode(pictures, self._pool_ticket)
        self._pool_ticket = self._pool_ticket.later
        return images

    async def forward(self, images: UInt8Array, noise: Float32Array) -> Forward:
        """See Runner; raises as `Batcher.submit`."""
        return Forward(*(await self._run(self.model.forward, images, noise))[:-_LIKELIHOODS])

    async def score(self, images: UInt8Array, noise: Float32Array) -> tuple[Forward, Likelihoods]:
        """See Runner; raises as `Batcher.submit`. The scores were computed for the whole batch."""
        rows = await self._run(self.model.forward, images, noise)
        return Forward(*rows[:-_LIKELIHOODS]), Likelihoods(*rows[-_LIKELIHOODS:])

    async def p_values(self, images: UInt8Array, forward: Forward) -> Float64Array:
        """See Runner. They are computed for the callers of a batch in one step."""
        rows = (images, forward.log_likelihood, forward.latent, forward.log_prior, forward.log_det)
        with self._call.timed(PREPARATION):
            return await self.model.p_values.run(
                self._call.holding.kept(lambda: rows),
                images=len(images),
                size=forward.latent.nbytes,
                pool=self._pool,
            )

    async def reverse(self, latents: Float32Array, classes: Int64Array | None = None) -> Reverse:
        """See Runner; raises as `Batcher.submit`."""
        if not self.bundle.classes:
            return Reverse(*await self._run(self.model.reverse, latents))
        numbers = np.full(len(latents), -1, np.int64) if classes is None else classes
        return Reverse(*await self._run(self.model.reverse, latents, numbers))

    async def open_explainer(self) -> None:
        """See Runner; raises as `Opening.wait`."""
        with self._call.timed(PREPARATION):
            await self.model.opening.wait()

    async def explain(self, images: UInt8Array, noise: Float32Array) -> Float32Array:
        """See Runner; raises as `Batcher.submit`."""
        (deviations,) = await self._run(self.model.explain, images, noise)
        return deviations

    async def _run(self, lane: RowRunner, *rows: Array) -> Rows:
        answer = await lane.run(*rows, ticket=self._lane_ticket)
        for time_in_stage in answer.times:
            self._call.record(*time_in_stage)
        # What was done would be lost if the rest of the call were refused.
        self._pool_ticket = self._lane_ticket = self._lane_ticket.later
        return answer.rows
