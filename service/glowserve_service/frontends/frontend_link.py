"""A front-end, as the engine process sees it: runs the rows of its callers, answers it, and tells it what is served."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from google.protobuf.message import Message

from glowserve_service.errors import UnavailableError
from glowserve_service.front.control import CHANGES, REQUESTS, Control
from glowserve_service.frontends import protocol
from glowserve_service.frontends.arena import SharedMemory, copy
from glowserve_service.frontends.channel import Channel
from glowserve_service.frontends.descriptions import packed_model
from glowserve_service.frontends.protocol import (
    NUMBER,
    RUN_FIELDS,
    STAGE_TIME,
    STAGES,
    TWO_NUMBERS,
    Kind,
    Layout,
    layouts,
)
from glowserve_service.models.lane import DIRECTIONS
from glowserve_service.models.served_model import ServedModel
from glowserve_service.observability import deltas
from glowserve_service.observability.deltas import Delta
from glowserve_service.observability.metrics import Metrics
from glowserve_service.scheduling.ticket import AdmissionGate, Ticket

# A front-end answers in a millisecond. One that does not is stopped, or starved of processor time.
_SYNC_SECONDS = 0.5
# Telling one of a large model takes longer.
_CHANGE_SECONDS = 5.0

log = logging.getLogger(__name__)


class FrontendLink:
    """Speaks to one front-end, until that ends.

    Args:
        connection: to it.
        memory: where its rows are.
        control: answers the calls about models.
        metrics: the service's.
        on_change: awaited after a call that loads or unloads models, before it is answered.
    """

    def __init__(
        self,
        connection: socket.socket,
        memory: SharedMemory,
        control: Control,
        metrics: Metrics,
        on_change: Callable[[], Awaitable[None]],
    ) -> None:
        self._memory, self._control, self._metrics = memory, control, metrics
        self._on_change = on_change
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when it listens; or an error, why it does not."""
        self.gauges: dict[str, float] = {}
        """Its gauges, as of the last `sync`, by the attribute of `Metrics`."""
        self._models: dict[int, _HeldModel] = {}
        self._requests: dict[int, asyncio.Task[bytes]] = {}
        self._syncs: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count()
        self._commands: asyncio.Queue[Callable[[], Coroutine[Any, Any, None]]] = asyncio.Queue()
        self._told = self._applied = 0
        self._facts = 0  # how many had been told with the last one that was about models and health
        self.ended = asyncio.Event()
        """Set when its last frame has been read."""
        self._change = asyncio.Event()
        self._channel = Channel(connection, self._take, self.close)
        self._commander = asyncio.create_task(self._command())

    @property
    def listens(self) -> bool:
        """Whether it has started."""
        return self.started.done() and not self.started.exception()

    def serve(self, models: Iterable[ServedModel]) -> None:
        """Has it serve these models, and no others."""
        known = {id(held.model): number for number, held in self._models.items()}
        numbers, new = [], []
        for model in models:
            if (number := known.get(id(model))) is None:
                number = next(_MODEL_NUMBERS)
                self._models[number] = _HeldModel(model)
                new.append((number, model))
            numbers.append(number)

        async def tell() -> None:
            for number, model in new:
                self._channel.send(Kind.MODEL, await asyncio.to_thread(packed_model, number, model))
            self._channel.send(Kind.SERVED, json.dumps(numbers).encode())

        self._told += len(new) + 1
        self._facts = self._told
        self._commands.put_nowait(tell)

    def tell(self, kind: Kind, content: Any = None) -> None:
        """Sends a command, after those before it."""

        async def tell() -> None:
            self._channel.send(kind, json.dumps(content).encode())

        self._told += 1
        if kind == Kind.HEALTH:
            self._facts = self._told
        self._commands.put_nowait(tell)

    async def applied(self, seconds: float) -> None:
        """Returns when all commands so far are carried out, or the front-end has ended; TimeoutError if neither."""
        await self._carried_out(self._told, seconds)

    async def informed(self, seconds: float) -> None:
        """The same for the commands about models and health. Those that stop a front-end wait for its calls."""
        await self._carried_out(self._facts, seconds)

    async def _carried_out(self, told: int, seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while self._applied < told and not self.ended.is_set():
                self._change.clear()
                await self._change.wait()

    async def sync(self) -> None:
        """Has it send what it has counted, and its gauges. Gives up after half a second."""
        number = next(self._numbers)
        self._syncs[number] = asyncio.get_running_loop().create_future()
        self._channel.send(Kind.SYNC, NUMBER.pack(number))
        await asyncio.wait({self._syncs[number]}, timeout=_SYNC_SECONDS)
        self._syncs.pop(number, None)

    def close(self) -> None:
        """Drops what its callers wait for, and releases its models."""
        self.ended.set()
        self._channel.close()
        self._commander.cancel()
        for task in self._requests.values():
            task.cancel()
        for held in self._models.values():
            held.model.release()
        self._models.clear()
        for sync in self._syncs.values():
            sync.cancel()
        self._change.set()

    async def _command(self) -> None:
        while True:
            command = await self._commands.get()
            try:
                await command()
            except Exception:
                log.exception("a front-end could not be told of a change")

    def _take(self, kind: int, content: bytes) -> None:
        self._HANDLERS[kind](self, content)

    def _run(self, content: bytes) -> None:
        number, model, count, offset, deadline, place, flags = RUN_FIELDS.unpack(content)
        gate = _RemoteGate(self._channel, number) if flags & protocol.GATED else None
        ticket = Ticket(deadline, bool(flags & protocol.FIRST), bool(flags & protocol.LONG), gate)
        self._begin(number, self._run_rows(number, model, count, offset, place, ticket))

    async def _run_rows(
        self, number: int, model: int, count: int, offset: int, place: int, ticket: Ticket
    ) -> bytes:
        held = self._held(model)
        layout = held.layouts[place]
        rows, results = layout.views(self._memory.block(offset, layout.size(count)), count)
        answer = await held.model.lanes[DIRECTIONS[place]].run(*rows, ticket=ticket)
        # As a whole, even if the call is cancelled: once the request is answered, the block is another one's.
        await copy(answer.rows, results)
        return b"".join(STAGE_TIME.pack(STAGES.index(t.stage), t.began, t.ended) for t in answer.times)

    def _cancel(self, content: bytes) -> None:
        if task := self._requests.get(*NUMBER.unpack(content)):
            task.cancel()

    def _answer(self, content: bytes) -> None:
        (number,) = NUMBER.unpack_from(content)
        request = REQUESTS[content[NUMBER.size]].FromString(content[NUMBER.size + 1 :])

        async def answer() -> bytes:
            response = await self._control.answer(request, Message)
            if isinstance(request, CHANGES):
                await self._on_change()
            else:  # a model that is listed can be called
                with suppress(TimeoutError):
                    await self.informed(_CHANGE_SECONDS)
            return response.SerializeToString()

        self._begin(number, answer())

    def _open(self, content: bytes) -> None:
        number, model = TWO_NUMBERS.unpack(content)

        async def opened() -> bytes:
            await self._held(model).model.opening.wait()
            return b""

        self._begin(number, opened())

    def _begin(self, number: int, work: Coroutine[Any, Any, bytes]) -> None:
        task = self._requests[number] = asyncio.create_task(work)
        # A callback, not a coroutine around the work: a task that is cancelled before its first step runs none.
        task.add_done_callback(partial(self._reply, number))

    def _reply(self, number: int, task: asyncio.Task[bytes]) -> None:
        """Answers a request, however its work has ended."""
        del self._requests[number]
        if task.cancelled():
            error: BaseException | None = UnavailableError("the call was cancelled")
        else:
            error = task.exception()
        if error is None:
            self._channel.send(Kind.DONE, NUMBER.pack(number), task.result())
        else:
            self._channel.send(Kind.FAILED, NUMBER.pack(number), protocol.packed_error(error))

    def _held(self, number: int) -> _HeldModel:
        if number not in self._models:
            raise UnavailableError("the model was replaced; try again")
        return self._models[number]

    def _release(self, content: bytes) -> None:
        self._models.pop(*NUMBER.unpack(content)).model.release()

    def _score(self, content: bytes) -> None:
        number, count = TWO_NUMBERS.unpack_from(content)
        if held := self._models.get(number):
            scores = np.frombuffer(content, np.float64, offset=TWO_NUMBERS.size)
            held.model.traffic.add(scores[:count], scores[count:] if len(scores) > count else None)

    def _count(self, content: bytes) -> None:
        deltas.add(self._metrics, (Delta(*delta) for delta in json.loads(content)))

    def _gauge(self, content: bytes) -> None:
        self.gauges = json.loads(content[NUMBER.size :])
        if sync := self._syncs.get(*NUMBER.unpack_from(content)):
            sync.set_result(None)

    def _apply(self, _: bytes) -> None:
        self._applied += 1
        self._change.set()

    def _start(self, _: bytes) -> None:
        self.started.set_result(None)

    def _fail_to_start(self, content: bytes) -> None:
        self.started.set_exception(protocol.unpacked_error(content))

    _HANDLERS: Mapping[int, Callable[[FrontendLink, bytes], None]] = {
        Kind.STARTED: _start,
        Kind.NOT_STARTED: _fail_to_start,
        Kind.RUN: _run,
        Kind.CANCEL: _cancel,
        Kind.CONTROL: _answer,
        Kind.OPEN: _open,
        Kind.RELEASED: _release,
        Kind.SCORED: _score,
        Kind.COUNTED: _count,
        Kind.GAUGES: _gauge,
        Kind.APPLIED: _apply,
    }


_MODEL_NUMBERS = itertools.count(1)


class _HeldModel:
    """A model that a front-end knows, which is kept open for it."""

    def __init__(self, model: ServedModel) -> None:
        model.hold()
        self.model = model
        self.layouts: tuple[Layout, ...] = layouts(model.bundle)


class _RemoteGate(AdmissionGate):
    """The gate of a call whose later work is in the front-end."""

    def __init__(self, channel: Channel, number: int) -> None:
        super().__init__()
        self._channel, self._number = channel, number

    def open(self) -> None:
        """See AdmissionGate."""
        self._channel.send(Kind.ADMITTED, NUMBER.pack(self._number))
