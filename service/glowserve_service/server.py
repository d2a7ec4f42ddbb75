"""A service from start to end: bind, load, serve, drain, stop. This file wires all others together."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import math
import socket
from collections.abc import Callable
from typing import Any

import grpc

from glowserve.oip import grpc_service_pb2_grpc
from glowserve.runtime.errors import GlowserveError
from glowserve.v1 import glow_service_pb2, glow_service_pb2_grpc
from glowserve_service import signals
from glowserve_service.config import ServiceConfig
from glowserve_service.errors import PortError
from glowserve_service.front import health, reflection
from glowserve_service.front.glow_service import GlowServicer
from glowserve_service.front.health import Health
from glowserve_service.front.middleware import CallMiddleware
from glowserve_service.front.open_inference import servicer as open_inference
from glowserve_service.front.open_inference.servicer import OpenInferenceServicer
from glowserve_service.models.daemon_threads import call_in_daemon_thread
from glowserve_service.models.manager import ModelManager
from glowserve_service.models.registry import ModelRegistry
from glowserve_service.observability import descriptors, traces
from glowserve_service.observability.descriptors import DescriptorWatch
from glowserve_service.observability.metrics import Metrics
from glowserve_service.observability.metrics_server import MetricsServer
from glowserve_service.scheduling.cpu_pool import CpuPool
from glowserve_service.scheduling.decoder import DecoderError
from glowserve_service.scheduling.decoders import Decoders
from glowserve_service.security.access import warning
from glowserve_service.security.certificates import Certificates
from glowserve_service.security.tokens import Tokens

SERVICE_NAME = glow_service_pb2.DESCRIPTOR.services_by_name["GlowService"].full_name

# When gRPC stops, it answers CANCELLED to calls that it has received and not yet passed on: their callers would think
# that they had cancelled them. It also closes a connection with the last call on it: a caller that is still writing
# gets "Broken pipe" instead of a status. So gRPC is stopped, while new calls are answered UNAVAILABLE, only when no
# call is open and none has started or ended for the first of these times. The second is the limit, for calls that take
# long and for callers that retry: by then a client has made its last attempt.
_LAST_CALLS_SECONDS = 0.2
_MOST_LAST_CALLS_SECONDS = 1.0
# Calls are open until their answers are written. gRPC would wait longer, for clients to close their connections: those
# that have no call do not even read that they should.
_LAST_ANSWERS_SECONDS = 0.5
# How long the rest may take to stop: threads that decode pictures, the metrics' server, and the exporter of traces.
_CLOSE_SECONDS = 2.0
# The process ends so long after `drain_seconds`, whatever hangs: more than the sum of the times above, of the two
# seconds that decoders get, and of the second each that hanging models and the log get.
_MOST_STOP_SECONDS = 9.0

# A client may send keepalive pings this often, in a call or between calls; ours do every `channel.KEEPALIVE_MS`.
# gRPC's default is one ping in five minutes, and it closes the connection of clients that send more.
_LEAST_BETWEEN_PINGS_MS = 10_000
# The server sends pings, too: a client that vanished would leave its calls open.
_KEEPALIVE_MS = 60_000
_KEEPALIVE_TIMEOUT_MS = 20_000

# A handshake, up to the first settings of HTTP/2, takes no longer, or the connection is closed.
_HANDSHAKE_MS = 10_000
# Only where descriptors are few: gRPC closes an idle connection with an error, which clients print.
_IDLE_MS = 20_000

# How much a caller may send on a stream before the service reads it. gRPC's default grows to megabytes, for each stream
# that does not read its answers. A message that is longer is still read as a whole, after one more round trip.
_SENT_AHEAD_BYTES = 256 * 2**10

_CERTIFICATE_SECONDS = 86_400.0

# How many new objects start a garbage collection. Python's 700 are those of a few calls. Only refused calls leave
# reference cycles, of 10 KB each and without their requests.
_GC_THRESHOLD = 10_000

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
        self._health = Health(("", SERVICE_NAME, open_inference.SERVICE_NAME))
        self._traces = traces.from_environment()
        self._middleware = CallMiddleware(
            (SERVICE_NAME, open_inference.SERVICE_NAME),
            self.metrics,
            config,
            always=open_inference.READINESS_METHODS,
            traces=self._traces,
        )
        self._most_connections = descriptors.most_connections(config.max_connections)
        self._closers: list[Callable[[], Any]] = []
        self._watches: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Binds, answers UNAVAILABLE while it loads, then serves; health says SERVING once it returns.

        Raises:
            GlowserveError: a port is taken, or there is nothing to serve; the message says what to do.
            ValueError: certificates or tokens cannot be used; likewise.
        """
        if scarcity := descriptors.warning(self._most_connections):
            log.warning("%s", scarcity)
        if self._traces:
            self._closers.append(self._traces.close)
        tokens = None if self.config.tokens is None else Tokens(self.config.tokens)
        self._middleware.tokens = tokens
        self._server = grpc.aio.server(options=_options(self.config, self._most_connections))
        self._server.add_generic_rpc_handlers((self._middleware,))
        self._bind(tokens)
        models = ModelRegistry(self.metrics)
        self._middleware.image_values = lambda: max(
            (math.prod(each.bundle.shape) for each in models), default=0
        )
        self._manager = ModelManager(self.config, models, self.metrics, self._health.set)
        workers = min(4, self.config.instances_on("cpu"))
        # Two at least: while one decodes something slow, another takes the next.
        self._decoders = Decoders(
            max(2, workers),
            self.config.max_pixels_per_call,
            self.config.max_message_mib * 2**20,
            lambda reason: self.metrics.failed_decodes.labels(reason).inc(),
        )
        pool = CpuPool(workers, self.config.max_queue_size, self._decoders)
        self._closers.append(pool.close)
        servicer = GlowServicer(models, self._manager, self.config, pool)
        glow_service_pb2_grpc.add_GlowServiceServicer_to_server(servicer, self._middleware)
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            OpenInferenceServicer(models, self._manager, self.config, pool, self._health.is_serving),
            self._middleware,
        )
        health.add_to_server(self._health, self._middleware)
        reflection.add_to_server((SERVICE_NAME, open_inference.SERVICE_NAME), self._middleware)
        await self._server.start()
        try:
            await self._manager.start()
            await self._start_decoders()
        except BaseException:
            await self._server.stop(None)
            await self._manager.close()
            await self._decoders.close()
            await self._close()
            raise
        watch = DescriptorWatch(self._most_connections)
        self.metrics.descriptors_short.set_function(lambda: float(watch.are_short()))
        self._watches.append(asyncio.create_task(watch.run()))
        self._middleware.accept()
        self._health.serve()

    async def _start_decoders(self) -> None:
        try:
            await self._decoders.ready()
        except DecoderError as error:
            raise GlowserveError(str(error)) from error

    async def stop(self) -> None:
        """Says NOT_SERVING, refuses new calls, and lets accepted ones finish for up to `drain_seconds`."""
        log.info("stopping: accepted calls have %g s to finish", self.config.drain_seconds)
        self._health.stop()
        self._middleware.refuse()
        await self._middleware.quiet(_LAST_CALLS_SECONDS, at_most=_MOST_LAST_CALLS_SECONDS)
        drained = asyncio.ensure_future(self._server.stop(self.config.drain_seconds))
        idle = asyncio.ensure_future(self._middleware.idle())
        await asyncio.wait({drained, idle}, return_when=asyncio.FIRST_COMPLETED)
        # Still open are idle connections, and streams of reflection, which clients keep for good.
        await asyncio.wait({drained}, timeout=_LAST_ANSWERS_SECONDS)
        await self._server.stop(0)
        await drained
        idle.cancel()
        await self._manager.close()
        await self._decoders.close()
        await self._close()
        log.info("stopped")

    async def _close(self) -> None:
        def close_all() -> None:
            for close in reversed(self._closers):
                try:
                    close()
                except Exception:
                    log.exception("a part of the service cannot be closed")

        for watch in self._watches:
            watch.cancel()
        closing = asyncio.wrap_future(call_in_daemon_thread(close_all))
        if not (await asyncio.wait({closing}, timeout=_CLOSE_SECONDS))[0]:
            log.error("the rest of the service has not stopped in %g s: it is left behind", _CLOSE_SECONDS)

    def _bind(self, tokens: Tokens | None) -> None:
        config, certificates = self.config, None
        if config.tls_cert is not None and config.tls_key is not None:
            certificates = Certificates(config.tls_cert, config.tls_key, config.tls_client_ca)
            self.metrics.show_certificates(certificates)
            self._watches.append(asyncio.create_task(_watch(certificates)))
        if danger := warning(config):
            log.warning("%s", danger)
        address = config.address(config.port)
        try:
            _try_to_bind(config.host, config.port)
            if certificates is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, certificates.credentials())
        except OSError as error:
            raise PortError(_cannot_listen("port", config.port, config.host, error)) from error
        except RuntimeError:  # gRPC's, without a reason: another process was faster
            self.port = 0
        if not self.port:
            raise PortError(_cannot_listen("port", config.port, config.host, OSError(errno.EADDRINUSE, "")))
        try:
            metrics = MetricsServer(
                config.host, config.metrics_port, self.metrics.registry, certificates, tokens
            )
        except OSError as error:
            raise PortError(
                _cannot_listen("metrics_port", config.metrics_port, config.host, error)
            ) from error
        self.metrics_port = metrics.server_port
        self._closers.append(metrics.close)


async def _watch(certificates: Certificates) -> None:
    """Has the log tell of certificates that expire, also where nobody connects."""
    while True:
        await asyncio.sleep(_CERTIFICATE_SECONDS)
        await asyncio.to_thread(certificates.log_validity)


def _cannot_listen(name: str, port: int, host: str, error: OSError) -> str:
    reason = "; is it in use?" if error.errno == errno.EADDRINUSE else f": {error.strerror}"
    return f"{name} {port} on {host} cannot be listened on{reason}"


def _try_to_bind(host: str, port: int) -> None:
    """Raises OSError where gRPC would fail, and besides write lines of its own to stderr."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _options(config: ServiceConfig, most_connections: int) -> list[tuple[str, int]]:
    options = [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _SENT_AHEAD_BYTES),
        # Identity alone. gRPC unpacks a compressed request before it looks at its size: 1 MB would become 1 GB.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # Two servers on one port would share its calls without a word.
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", config.max_concurrent_streams),
        ("grpc.max_allowed_incoming_connections", most_connections),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _LEAST_BETWEEN_PINGS_MS),
    ]
    if descriptors.limit() < descriptors.FEW:
        options.append(("grpc.max_connection_idle_ms", _IDLE_MS))
    if config.max_connection_age_seconds:
        # The calls that are under way on an old connection may end there, however long they take.
        options.append(("grpc.max_connection_age_ms", round(1000 * config.max_connection_age_seconds)))
    return options


async def serve(config: ServiceConfig, on_ready: Callable[[Server], None]) -> None:
    """Runs a service until a signal ends it.

    Args:
        config: its settings.
        on_ready: called when it serves.

    Raises:
        GlowserveError: it cannot start.
    """
    gc.set_threshold(_GC_THRESHOLD)
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
