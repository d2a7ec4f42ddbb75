"""A front-end: a front whose models are served by the engine process."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping

from glowserve.runtime.errors import GlowserveError
from glowserve_service.config import ServiceConfig
from glowserve_service.front.closers import Closers
from glowserve_service.front.front import Front
from glowserve_service.frontends import protocol
from glowserve_service.frontends.arena import Arena, SharedMemory
from glowserve_service.frontends.descriptions import unpacked_model
from glowserve_service.frontends.engine_link import EngineLink
from glowserve_service.frontends.protocol import NUMBER, Kind
from glowserve_service.frontends.remote_model import RemoteControl, RemoteModel
from glowserve_service.models.registry import ModelRegistry
from glowserve_service.observability.metrics import Metrics
from glowserve_service.security.certificates import Certificates
from glowserve_service.security.tokens import Tokens

# If this process is killed, what it has counted since is lost.
_COUNT_SECONDS = 0.5

log = logging.getLogger(__name__)


class Frontend:
    """The front-end of this process.

    Args:
        config: its settings.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        self._metrics = Metrics()
        self._models = ModelRegistry[RemoteModel]()
        self._by_number: dict[int, RemoteModel] = {}
        self._commands: asyncio.Queue[tuple[Kind, bytes]] = asyncio.Queue()
        self._releasing: set[asyncio.Task[None]] = set()
        self._files: list[Callable[[], object]] = []  # each reads files again if they have changed

    async def run(self, connection: socket.socket, memory: int) -> int:
        """Accepts calls until the engine process ends them; returns the exit code.

        Args:
            connection: to the engine process.
            memory: the descriptor of the memory that both share.
        """
        closers = Closers()
        self._link = EngineLink(
            connection,
            self._metrics,
            lambda kind, content: self._commands.put_nowait((kind, content)),
            self._send_traffic,
            lambda: os._exit(1),  # without the engine process there is nothing to wait for
        )
        try:
            self._prepare(closers, memory)
            await self._obey(until=Kind.LISTEN)
        except (GlowserveError, ValueError) as error:
            known = error if isinstance(error, GlowserveError) else GlowserveError(str(error))
            self._link.send(Kind.NOT_STARTED, protocol.packed_error(known))
            await self._link.drained()
            return 2
        self._link.send(Kind.STARTED)
        counting = asyncio.create_task(self._count())
        await self._obey(until=Kind.STOP)
        counting.cancel()
        await self._front.close()
        self._link.count()
        await self._link.drained()
        await closers.close()
        return 0

    def _prepare(self, closers: Closers, memory: int) -> None:
        config, certificates = self._config, None
        tokens = None
        if config.tokens is not None:
            tokens = Tokens(config.tokens)
            self._files.append(lambda: tokens.has("infer"))
        if config.tls_cert is not None and config.tls_key is not None:
            certificates = Certificates(config.tls_cert, config.tls_key, config.tls_client_ca)
            self._files.append(certificates.validity)
        front = self._front = Front(config, self._metrics, closers, certificates, tokens, shares_port=True)
        self._arena = Arena(SharedMemory(memory), front.middleware.received)

    async def _obey(self, until: Kind) -> None:
        """Carries out the commands of the engine process, up to the first one of that kind."""
        methods: Mapping[Kind, Callable[[bytes], Awaitable[None]]] = {
            Kind.LISTEN: self._listen,
            Kind.MODEL: self._add,
            Kind.SERVED: self._serve,
            Kind.HEALTH: self._set_health,
            Kind.ACCEPT: self._accept,
            Kind.REFUSE: self._refuse,
            Kind.STOP: self._stop,
        }
        kind = None
        while kind != until:
            kind, content = await self._commands.get()
            await methods[kind](content)
            self._link.send(Kind.APPLIED)

    async def _listen(self, _: bytes) -> None:
        self._front.bind()
        await self._front.start(self._models, RemoteControl(self._link))
        await self._front.ready()

    async def _add(self, content: bytes) -> None:
        described = await asyncio.to_thread(unpacked_model, content)
        self._by_number[described.number] = RemoteModel(
            described, self._link, self._arena, self._config.max_batch_size, self._metrics
        )

    async def _serve(self, content: bytes) -> None:
        numbers = json.loads(content)
        served: defaultdict[str, dict[int, RemoteModel]] = defaultdict(dict)
        for number in numbers:
            model = self._by_number[number]
            served[model.name][model.version] = model
        for name in {*self._models.names(), *served}:
            self._models.replace(name, served[name])
        for number in self._by_number.keys() - set(numbers):
            task = asyncio.create_task(self._release(self._by_number.pop(number)))
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)

    async def _release(self, model: RemoteModel) -> None:
        await model.unleased()
        model.send_traffic()
        self._link.send(Kind.RELEASED, NUMBER.pack(model.number))

    async def _set_health(self, content: bytes) -> None:
        self._front.set_health(*json.loads(content))

    async def _accept(self, _: bytes) -> None:
        await self._front.accept()

    async def _refuse(self, _: bytes) -> None:
        await self._front.refuse()

    async def _stop(self, _: bytes) -> None:
        await self._front.stop()

    def _send_traffic(self) -> None:
        for model in self._by_number.values():
            model.send_traffic()

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(_COUNT_SECONDS)
            self._link.count()
            self._arena.trim()
            # If it waited for a call, it could miss a change that the other front-ends have seen.
            for read in self._files:
                read()
