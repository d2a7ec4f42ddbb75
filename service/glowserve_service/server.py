"""A service from start to end: bind, load, serve, drain, stop. This file wires all others together."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable

from glowserve.runtime.errors import GlowserveError
from glowserve_service import signals
from glowserve_service.config import ServiceConfig
from glowserve_service.errors import PortError
from glowserve_service.front.closers import Closers
from glowserve_service.front.control import ModelControl
from glowserve_service.front.front import GC_THRESHOLD, Front, cannot_listen
from glowserve_service.frontends.frontends import Frontends
from glowserve_service.frontends.number import reason, with_frontends
from glowserve_service.models.manager import ModelManager
from glowserve_service.models.registry import ServedModels
from glowserve_service.observability.metrics import Metrics
from glowserve_service.observability.metrics_server import MetricsServer
from glowserve_service.security.access import warning
from glowserve_service.security.certificates import Certificates
from glowserve_service.security.tokens import Tokens

# The process ends so long after `drain_seconds`, whatever hangs: more than the sum of the times that `front.py` and
# `closers.py` have, of the two seconds that decoders get, and of the second each that hanging models and the log get.
_MOST_STOP_SECONDS = 9.0

_CERTIFICATE_SECONDS = 86_400.0

log = logging.getLogger(__name__)


class Server:
    """A service in this process: `start`, and later `stop`.

    Args:
        config: its settings.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self.config = with_frontends(config)
        self._has_chosen = not config.frontends
        self.metrics = Metrics()
        self.port = 0
        self.metrics_port = 0
        self._closers = Closers()
        self._watches: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Binds, answers UNAVAILABLE while it loads, then serves; health says SERVING once it returns.

        Raises:
            GlowserveError: a port is taken, or there is nothing to serve; the message says what to do.
            ValueError: certificates or tokens cannot be used; likewise.
        """
        config, self.loop = self.config, asyncio.get_running_loop()
        tokens = None if config.tokens is None else Tokens(config.tokens)
        certificates = self._certificates()
        if danger := warning(config):
            log.warning("%s", danger)
        self.front: Front | Frontends
        if config.frontends == 1:
            self.front = Front(config, self.metrics, self._closers, certificates, tokens)
        else:
            self.front = Frontends(config, self.metrics, self._closers)
        try:
            self.port = self.front.bind()
            self._bind_metrics(certificates, tokens)
        except GlowserveError:
            await self._closers.close()
            raise
        if self._has_chosen:
            log.info("%s", reason(config))
        models = ServedModels(self.metrics)
        self.manager = ModelManager(config, models, self.metrics, self.front.set_health)
        await self.front.start(models, ModelControl(models, self.manager))
        try:
            await self.manager.start()
            await self.front.ready()
        except BaseException:
            await self.front.abandon()
            await self._close()
            raise
        await self.front.accept()

    async def stop(self) -> None:
        """Says NOT_SERVING, refuses new calls, and lets accepted ones finish for up to `drain_seconds`."""
        log.info("stopping: accepted calls have %g s to finish", self.config.drain_seconds)
        await self.front.stop()
        await self._close()
        log.info("stopped")

    async def _close(self) -> None:
        await self.manager.close()
        await self.front.close()
        for watch in self._watches:
            watch.cancel()
        await self._closers.close()

    def _certificates(self) -> Certificates | None:
        config = self.config
        if config.tls_cert is None or config.tls_key is None:
            return None
        certificates = Certificates(config.tls_cert, config.tls_key, config.tls_client_ca)
        self.metrics.show_certificates(certificates)
        self._watches.append(asyncio.create_task(_watch(certificates)))
        return certificates

    def _bind_metrics(self, certificates: Certificates | None, tokens: Tokens | None) -> None:
        host, port = self.config.host, self.config.metrics_port
        try:
            server = MetricsServer(host, port, self.metrics.registry, certificates, tokens)
        except OSError as error:
            raise PortError(cannot_listen("metrics_port", port, host, error)) from error
        self.metrics_port = server.server_port
        self._closers.add(server.close)


async def _watch(certificates: Certificates) -> None:
    """Has the log tell of certificates that expire, also where nobody connects."""
    while True:
        await asyncio.sleep(_CERTIFICATE_SECONDS)
        await asyncio.to_thread(certificates.log_validity)


async def serve(config: ServiceConfig, on_ready: Callable[[Server], None]) -> None:
    """Runs a service until a signal ends it.

    Args:
        config: its settings.
        on_ready: called when it serves.

    Raises:
        GlowserveError: it cannot start.
    """
    gc.set_threshold(GC_THRESHOLD)
    asked_to_stop, loop = asyncio.Event(), asyncio.get_running_loop()
    signals.on_stop(
        lambda: loop.call_soon_threadsafe(asked_to_stop.set), config.drain_seconds + _MOST_STOP_SECONDS
    )
    server = Server(config)
    starting = asyncio.create_task(server.start())
    asked = asyncio.create_task(asked_to_stop.wait())
    await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        log.info("stopping before every model is loaded")
        starting.cancel()
        await asyncio.wait({starting})
        log.info("stopped")
        return
    await starting
    if not asked_to_stop.is_set():
        on_ready(server)
    await asked
    await server.stop()
