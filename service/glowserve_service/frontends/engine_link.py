"""The engine process, as a front-end sees it: runs rows there, and asks for answers."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import Callable
from typing import NamedTuple

from glowserve.images import UInt8Array
from glowserve_service.frontends import protocol
from glowserve_service.frontends.arena import Arena
from glowserve_service.frontends.channel import Channel
from glowserve_service.frontends.protocol import NUMBER, RUN_FIELDS, STAGE_TIME, STAGES, Kind, Layout
from glowserve_service.models.lane import DIRECTIONS
from glowserve_service.observability import deltas
from glowserve_service.observability.deltas import Deltas
from glowserve_service.observability.metrics import Metrics
from glowserve_service.scheduling.engine_threads import Array
from glowserve_service.scheduling.submission import Answer, StageTime
from glowserve_service.scheduling.ticket import AdmissionGate, Ticket

# Rows of so many bytes are copied in a thread.
_LARGE = 2**20


class _Request(NamedTuple):
    """A request that is not answered."""

    answer: asyncio.Future[bytes]
    gate: AdmissionGate | None = None
    block: UInt8Array | None = None
    """Kept until the engine process does not use it any more, also if the caller has left."""


class EngineLink:
    """Speaks to the engine process.

    Args:
        connection: to it.
        arena: where rows are put, which the engine process maps, too.
        metrics: of this process.
        on_command: called with the kind and the content of each command, in their order.
        on_end: called when the engine process has ended.
    """

    def __init__(
        self,
        connection: socket.socket,
        arena: Arena,
        metrics: Metrics,
        on_command: Callable[[Kind, bytes], None],
        on_end: Callable[[], None],
    ) -> None:
        self._arena, self._metrics = arena, metrics
        self._deltas = Deltas(metrics)
        self._on_command = on_command
        self._numbers = itertools.count()
        self._requests: dict[int, _Request] = {}
        self._channel = Channel(connection, self._take, on_end)
        self.send = self._channel.send
        """Sends a frame."""
        self.drained = self._channel.drained
        """Returns when all frames are sent."""

    async def run(
        self, model: int, direction: str, layout: Layout, rows: tuple[Array, ...], ticket: Ticket
    ) -> Answer:
        """Runs a caller's rows; raises as `Batcher.submit`, and BytesExhaustedError.

        Args:
            model: its number.
            direction: of the model.
            layout: of the rows and their results.
            rows: the arrays.
            ticket: of the rows.
        """
        if ticket.gate and not ticket.first:
            await ticket.gate.wait()
        count = len(rows[0])
        size = layout.size(count)
        offset, block = self._arena.allocate(size, may_refuse=ticket.first)
        places, results = layout.views(block, count)
        if size < _LARGE:
            _copy(rows, places)
        else:
            await asyncio.to_thread(_copy, rows, places)
        flags = (
            ticket.first * protocol.FIRST
            | ticket.long * protocol.LONG
            | bool(ticket.gate and ticket.first) * protocol.GATED
        )
        place = DIRECTIONS.index(direction)

        def fields(number: int) -> bytes:
            return RUN_FIELDS.pack(number, model, count, offset, ticket.deadline, place, flags)

        times = await self._ask(Kind.RUN, fields, ticket.gate, block)
        return Answer(
            tuple(results),
            [StageTime(STAGES[stage], began, ended) for stage, began, ended in STAGE_TIME.iter_unpack(times)],
        )

    async def ask(self, kind: Kind, content: bytes) -> bytes:
        """Sends a request that begins with its number, and returns the answer; raises the error that it gets."""
        return await self._ask(kind, lambda number: NUMBER.pack(number) + content)

    def count(self) -> None:
        """Sends what has been counted."""
        if found := self._deltas.take():
            self.send(Kind.COUNTED, json.dumps(found).encode())

    async def _ask(
        self,
        kind: Kind,
        content: Callable[[int], bytes],
        gate: AdmissionGate | None = None,
        block: UInt8Array | None = None,
    ) -> bytes:
        number = next(self._numbers) % 2**32
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._requests[number] = _Request(answer, gate, block)
        self.send(kind, content(number))
        try:
            return await answer
        except asyncio.CancelledError:
            if number in self._requests:
                self.send(Kind.CANCEL, NUMBER.pack(number))
            raise

    def _take(self, kind: int, content: bytes) -> None:
        if kind == Kind.DONE:
            self._end(content, None)
        elif kind == Kind.FAILED:
            self._end(content, protocol.unpacked_error(content[NUMBER.size :]))
        elif kind == Kind.ADMITTED:
            request = self._requests.get(*NUMBER.unpack(content))
            if request and request.gate:
                request.gate.open()
        elif kind == Kind.SYNC:
            self.count()
            facts = deltas.gauges(self._metrics)
            self.send(Kind.GAUGES, content, json.dumps(facts).encode())
        else:
            self._on_command(Kind(kind), content)

    def _end(self, content: bytes, error: Exception | None) -> None:
        request = self._requests.pop(*NUMBER.unpack_from(content))
        if request.answer.done():  # its caller has left
            return
        if error:
            request.answer.set_exception(error)
        else:
            request.answer.set_result(content[NUMBER.size :])


def _copy(rows: tuple[Array, ...], places: list[Array]) -> None:
    for array, place in zip(rows, places, strict=True):
        place[:] = array
