"""The engine process, as a front-end sees it: runs rows there, and asks for answers."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

from glowserve.images import UInt8Array
from glowserve_service.frontends import protocol
from glowserve_service.frontends.channel import Channel
from glowserve_service.frontends.protocol import NUMBER, RUN_FIELDS, STAGE_TIME, STAGES, Kind
from glowserve_service.models.lane import DIRECTIONS
from glowserve_service.observability import deltas
from glowserve_service.observability.deltas import Deltas
from glowserve_service.observability.metrics import Metrics
from glowserve_service.scheduling.submission import StageTime
from glowserve_service.scheduling.ticket import AdmissionGate, Ticket


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
        metrics: of this process.
        on_command: called with the kind and the content of each command, in their order.
        on_count: called before what has been counted is sent.
        on_end: called when the engine process has ended.
    """

    def __init__(
        self,
        connection: socket.socket,
        metrics: Metrics,
        on_command: Callable[[Kind, bytes], None],
        on_count: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._metrics = metrics
        self._deltas = Deltas(metrics)
        self._on_command, self._on_count = on_command, on_count
        self._numbers = itertools.count()
        self._requests: dict[int, _Request] = {}
        self._channel = Channel(connection, self._take, on_end)
        self.send = self._channel.send
        """Sends a frame."""
        self.drained = self._channel.drained
        """Returns when all frames are sent."""

    async def run(
        self,
        model: int,
        rows: int,
        offset: int,
        block: UInt8Array,
        direction: str,
        ticket: Ticket,
    ) -> Sequence[StageTime]:
        """Has rows run, and returns when their results are in the block; raises as `Batcher.submit`.

        Args:
            model: its number.
            rows: how many there are.
            offset: of the block where they are.
            block: the block.
            direction: of the model.
            ticket: of the rows.
        """
        gate = ticket.gate if ticket.first else None
        flags = ticket.first * protocol.FIRST | ticket.long * protocol.LONG | bool(gate) * protocol.GATED
        place = DIRECTIONS.index(direction)
        number, answer = self._begin(gate, block)
        del block  # else an error keeps it, whose traceback has this frame
        self.send(Kind.RUN, RUN_FIELDS.pack(number, model, rows, offset, ticket.deadline, place, flags))
        times = STAGE_TIME.iter_unpack(await self._end(number, answer))
        return [StageTime(STAGES[stage], began, ended) for stage, began, ended in times]

    async def ask(self, kind: Kind, content: bytes) -> bytes:
        """Sends a request that begins with its number, and returns the answer; raises the error that it gets."""
        number, answer = self._begin()
        self.send(kind, NUMBER.pack(number), content)
        return await self._end(number, answer)

    def count(self) -> None:
        """Sends what has been counted."""
        self._on_count()
        if found := self._deltas.take():
            self.send(Kind.COUNTED, json.dumps(found).encode())

    def _begin(
        self, gate: AdmissionGate | None = None, block: UInt8Array | None = None
    ) -> tuple[int, asyncio.Future[bytes]]:
        number = next(self._numbers) % 2**32
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._requests[number] = _Request(answer, gate, block)
        return number, answer

    async def _end(self, number: int, answer: asyncio.Future[bytes]) -> bytes:
        try:
            return await answer
        except asyncio.CancelledError:
            if number in self._requests:
                self.send(Kind.CANCEL, NUMBER.pack(number))
            raise

    def _take(self, kind: int, content: bytes) -> None:
        if kind == Kind.DONE:
            self._set(content, None)
        elif kind == Kind.FAILED:
            self._set(content, protocol.unpacked_error(content[NUMBER.size :]))
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

    def _set(self, content: bytes, error: Exception | None) -> None:
        request = self._requests.pop(*NUMBER.unpack_from(content))
        if request.answer.done():  # its caller has left
            return
        if error:
            request.answer.set_exception(error)
        else:
            request.answer.set_result(content[NUMBER.size :])
