"""A service from start to end: bind, load, serve, drain, stop. The one file that wires the others together."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from glowserve.oip import grpc_service_pb2_grpc
from glowserve.v1 import glow_service_pb2, glow_service_pb2_grpc
from service import oip
from service.batcher import Workers
from service.config import ServiceConfig
from service.errors import PortError
from service.health import Health
from service.interceptor import Edge
from service.metrics import Metrics
from service.models import Models, ServedModel, load_models
from service.preparer import Preparer
from service.servicer import GlowServicer

SERVICE_NAME = glow_service_pb2.DESCRIPTOR.services_by_name["GlowService"].full_name

# gRPC says CANCELLED to calls that have arrived, and not yet been handed to us, when it stops: a caller would take
# that for its own doing. So they are handed to us first, to be told UNAVAILABLE.
_LAST_CALLS_SECONDS = 0.2
_LAST_ANSWERS_SECONDS = 3.0

log = logging.getLogger(__name__)


class Server:
    """A service in this process: `start`, and later `stop`.

    Args:
        config: its settings.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self.metrics = Metrics()
        self.port = 0
        self.metrics_port = 0
        self._models: list[ServedModel] = []
        self._health = Health(("", SERVICE_NAME, oip.SERVICE_NAME))
        self._edge = Edge((SERVICE_NAME, oip.SERVICE_NAME), self.metrics, always=oip.READINESS_METHODS)
        self._closers: list[Callable[[], Any]] = []

    async def start(self) -> None:
        """Binds, answers UNAVAILABLE while it loads, then serves; health says SERVING once it returns.

        Raises:
            ServiceError: a port is taken, or there is nothing to serve; the message says what to do.
        """
        limit = self.config.max_message_mib * 2**20
        self._server = grpc.aio.server(
            interceptors=[self._edge],
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                # Two servers on one port would share its calls without a word.
                ("grpc.so_reuseport", 0),
            ],
        )
        self._bind()
        models = Models()
        preparer = Preparer(min(4, self.config.instances_on("cpu")), self.config.max_queue_size)
        self._closers.append(preparer.close)
        servicer = GlowServicer(models, self.config, self.metrics, preparer)
        glow_service_pb2_grpc.add_GlowServiceServicer_to_server(servicer, self._server)
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            oip.OipServicer(models, self.config, self.metrics, preparer, lambda: self._edge.accepts),
            self._server,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, oip.SERVICE_NAME, HEALTH_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        await self._server.start()
        try:
            loaded = await asyncio.to_thread(load_models, self.config)
        except BaseException:
            await self._server.stop(None)
            self._close()
            raise
        workers = Workers(self.config.instances_on(loaded[0].engine.device))
        self._closers.append(workers.close)
        for model in loaded:
            self._models.append(ServedModel(model, workers, self.config, self.metrics))
            models.add(self._models[-1])
        self._edge.accept()
        self._health.serve()

    async def stop(self) -> None:
        """Says NOT_SERVING, refuses new calls, and lets accepted ones finish for up to `drain_seconds`."""
        log.info("stopping: accepted calls have %g s to finish", self.config.drain_seconds)
        self._health.stop()
        self._edge.refuse()
        await asyncio.sleep(_LAST_CALLS_SECONDS)
        drained = asyncio.ensure_future(self._server.stop(self.config.drain_seconds))
        idle = asyncio.ensure_future(self._edge.idle())
        await asyncio.wait({drained, idle}, return_when=asyncio.FIRST_COMPLETED)
        # What is open now are answers on their way, and streams of reflection, which clients keep for good.
        await asyncio.wait({drained}, timeout=_LAST_ANSWERS_SECONDS)
        await self._server.stop(0)
        await drained
        idle.cancel()
        for model in self._models:
            await model.close()
        self._close()
        log.info("stopped")

    def _close(self) -> None:
        for close in reversed(self._closers):
            close()

    def _bind(self) -> None:
        address = f"{self.config.host}:{self.config.port}"
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise PortError(
                f"port {self.config.port} on {self.config.host} cannot be listened on; is it in use?"
            )
        try:
            server, thread = start_http_server(
                self.config.metrics_port, self.config.host, registry=self.metrics.registry
            )
        except OSError as error:
            raise PortError(
                f"metrics_port {self.config.metrics_port} on {self.config.host} cannot be listened on: "
                f"{error.strerror}"
            ) from error
        self.metrics_port = server.server_port
        self._closers += [thread.join, server.server_close, server.shutdown]


async def serve(config: ServiceConfig, on_ready: Callable[[Server], None]) -> None:
    """Runs a service until a signal ends it.

    Args:
        config: its settings.
        on_ready: told when it serves.

    Raises:
        ServiceError: it cannot start.
    """
    asked_to_stop = _on_signals()
    server = Server(config)
    await server.start()
    if not asked_to_stop.is_set():
        on_ready(server)
    await asked_to_stop.wait()
    await server.stop()


def _on_signals() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; another one ends the process at once."""
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)

    def ask() -> None:
        asked.set()
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in signals:
        loop.add_signal_handler(number, ask)
    return asked
