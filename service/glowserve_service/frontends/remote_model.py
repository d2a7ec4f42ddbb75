"""A model of the engine process, and the calls about models, as the front of a front-end uses them."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import numpy as np
from google.protobuf.message import Message

from glowserve.runtime.runner import Float64Array
from glowserve_service.front.control import REQUESTS
from glowserve_service.frontends.arena import Arena, copy
from glowserve_service.frontends.descriptions import Described
from glowserve_service.frontends.engine_link import EngineLink
from glowserve_service.frontends.protocol import NUMBER, TWO_NUMBERS, Kind, Layout, layouts
from glowserve_service.models.lane import EXPLAIN, FORWARD, REVERSE
from glowserve_service.models.model import Model
from glowserve_service.observability.metrics import Metrics
from glowserve_service.scheduling.engine_threads import Array
from glowserve_service.scheduling.submission import Answer
from glowserve_service.scheduling.ticket import Ticket

R = TypeVar("R", bound=Message)

# Calls whose scores wait, at most.
_MOST_WAITING = 256


class RemoteModel(Model):
    """A model whose rows the engine process runs.

    Args:
        described: the model.
        link: to the engine process.
        arena: where rows are put, which the engine process maps, too.
        max_batch_size: see Model.
        metrics: of this process.
    """

    def __init__(
        self, described: Described, link: EngineLink, arena: Arena, max_batch_size: int, metrics: Metrics
    ) -> None:
        super().__init__(
            described.bundle,
            described.scorer,
            described.class_scorer,
            described.attributes,
            described.placements,
            instances=described.instances,
            max_batch_size=max_batch_size,
            metrics=metrics,
        )
        self.number = number = described.number
        forward, reverse, explain = layouts(described.bundle)
        lane = partial(_RemoteLane, link, arena, number)
        self.forward, self.reverse, self.explain = (
            lane(FORWARD, forward),
            lane(REVERSE, reverse),
            lane(EXPLAIN, explain),
        )
        self.opening = _RemoteOpening(link, number)
        self.traffic: _RemoteTraffic = _RemoteTraffic(link, number)

    def send_traffic(self) -> None:
        """Sends the scores that have been gathered."""
        self.traffic.send()


class RemoteControl:
    """Has the engine process answer the calls about models.

    Args:
        link: to the engine process.
    """

    def __init__(self, link: EngineLink) -> None:
        self._link = link

    async def answer(self, request: Message, kind: type[R]) -> R:
        """See Control."""
        place = REQUESTS.index(type(request))
        answer = await self._link.ask(Kind.CONTROL, bytes([place]) + request.SerializeToString())
        return kind.FromString(answer)


class _RemoteLane:
    def __init__(self, link: EngineLink, arena: Arena, model: int, direction: str, layout: Layout) -> None:
        self._link, self._arena, self._layout = link, arena, layout
        self._model, self._direction = model, direction

    async def run(self, *rows: Array, ticket: Ticket) -> Answer:
        if ticket.gate and not ticket.first:
            await ticket.gate.wait()
        count = len(rows[0])
        offset, block = self._arena.allocate(self._layout.size(count), may_refuse=ticket.first)
        places, results = self._layout.views(block, count)
        try:
            await copy(rows, places)
            times = await self._link.run(self._model, count, offset, block, self._direction, ticket)
        except BaseException:
            del block, places, results  # else the error keeps them, whose traceback has this frame
            raise
        return Answer(tuple(results), times)


class _RemoteOpening:
    def __init__(self, link: EngineLink, model: int) -> None:
        self._link, self._model = link, model

    async def wait(self) -> None:
        await self._link.ask(Kind.OPEN, NUMBER.pack(self._model))


class _RemoteTraffic:
    """Gathers scores: a frame for each call would cost the engine process more than they are worth."""

    def __init__(self, link: EngineLink, model: int) -> None:
        self._link, self._model = link, model
        self._waiting: list[tuple[Float64Array, Float64Array | None]] = []

    def add(self, bits_per_dim: Float64Array, p_values: Float64Array | None = None) -> None:
        # A copy: they lie in a block, which would be kept with all else that is in it.
        self._waiting.append((bits_per_dim.copy(), p_values))
        if len(self._waiting) >= _MOST_WAITING:
            self.send()

    def send(self) -> None:
        waiting, self._waiting = self._waiting, []
        bare = [bits for bits, p_values in waiting if p_values is None]
        whole = [(bits, p_values) for bits, p_values in waiting if p_values is not None]
        for columns in ([bare] if bare else []), list(zip(*whole, strict=True)):
            if columns:
                scores = [np.concatenate(column).astype(np.float64) for column in columns]
                fields = TWO_NUMBERS.pack(self._model, len(scores[0]))
                self._link.send(Kind.SCORED, fields, *(each.tobytes() for each in scores))
