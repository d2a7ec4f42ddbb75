"""The gRPC server of a process: it binds, starts, accepts and drains. This file wires the front."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
import time
from collections.abc import Mapping
from contextlib import suppress

import grpc

from glowserve.oip import grpc_service_pb2_grpc
from glowserve.runtime.errors import GlowserveError
from glowserve.v1 import glow_service_pb2, glow_service_pb2_grpc
from glowserve_service.config import ServiceConfig
from glowserve_service.errors import PortError
from glowserve_service.front import health, reflection
from glowserve_service.front.closers import Closers
from glowserve_service.front.control import Control
from glowserve_service.front.glow_service import GlowServicer
from glowserve_service.front.health import Health
from glowserve_service.front.middleware import CallMiddleware
from glowserve_service.front.open_inference import servicer as open_inference
from glowserve_service.front.open_inference.servicer import OpenInferenceServicer
from glowserve_service.models.model import Models
from glowserve_service.observability import descriptors, traces
from glowserve_service.observability.descriptors import DescriptorWatch
from glowserve_service.observability.metrics import Metrics
from glowserve_service.scheduling.cpu_pool import CpuPool
from glowserve_service.scheduling.decoder import DecoderError
from glowserve_service.scheduling.decoders import Decoders
from glowserve_service.security.certificates import Certificates
from glowserve_service.security.tokens import Tokens

SERVICE_NAME = glow_service_pb2.DESCRIPTOR.services_by_name["GlowService"].full_name

# When gRPC stops, it answers CANCELLED to calls that it has received and not yet passed on (grpc/grpc#41785): their
# callers would think that they had cancelled them. It also closes a connection with the last call on it: a caller that
# is still writing gets "Broken pipe" instead of a status. So gRPC is stopped only when no more calls come; those that
# come until then are answered UNAVAILABLE. That takes no longer than `drain_seconds`, or this.
_LEAST_LAST_CALLS_SECONDS = 1.0
# Calls are open until their answers are written. gRPC would wait longer, for clients to close their connections: those
# that have no call do not even read that they should.
_LAST_ANSWERS_SECONDS = 0.5

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

GC_THRESHOLD = 10_000
"""How many new objects start a garbage collection. Python's 700 are those of a few calls. Only refused calls leave
reference cycles, of 10 KB each and without their requests."""

log = logging.getLogger(__name__)


class Front:
    """The front of a service in this process: `bind`, `start`, `ready`, `accept`; later `refuse`, `stop` and `close`.

    Args:
        config: the service's settings; of limits the share of this process.
        metrics: of this process.
        closers: to which those of the front are added.
        certificates: for TLS; None for none.
        tokens: every call must present one of these; None: no call needs one.
        shares_port: whether other processes of the service listen on the same port.
    """

    def __init__(
        self,
        config: ServiceConfig,
        metrics: Metrics,
        closers: Closers,
        certificates: Certificates | None,
        tokens: Tokens | None,
        *,
        shares_port: bool = False,
    ) -> None:
        self._config, self._metrics = config, metrics
        self._certificates = certificates
        self._shares_port = shares_port
        tracing = traces.from_environment()
        if tracing:
            closers.add(tracing.close)
        self._health = Health(("", SERVICE_NAME, open_inference.SERVICE_NAME))
        self.middleware = CallMiddleware(
            (SERVICE_NAME, open_inference.SERVICE_NAME),
            metrics,
            config,
            always=open_inference.READINESS_METHODS,
            traces=tracing,
        )
        self.middleware.tokens = tokens
        self._most_connections = descriptors.most_connections(config.max_connections)
        if scarcity := descriptors.warning(self._most_connections):
            log.warning("%s", scarcity)
        self._closers = closers
        self._decoders: Decoders | None = None
        self._watch: asyncio.Task[None] | None = None
        self._drain_end = math.inf  # on the clock of `time.monotonic`

    def bind(self) -> int:
        """Takes the port; returns its number.

        Raises:
            PortError: it cannot be listened on.
        """
        options = _options(self._config, self._most_connections, self._shares_port)
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((self.middleware,))
        config, port = self._config, 0
        address = config.address(config.port)
        try:
            if not self._shares_port:
                try_to_bind(config.host, config.port)
            if self._certificates is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, self._certificates.credentials())
        except OSError as error:
            raise PortError(cannot_listen("port", config.port, config.host, error)) from error
        except RuntimeError:  # gRPC's, without a reason: another process was faster
            port = 0
        if not port:
            raise PortError(cannot_listen("port", config.port, config.host, OSError(errno.EADDRINUSE, "")))
        return port

    async def start(self, models: Models, control: Control) -> None:
        """Answers UNAVAILABLE from now on.

        Args:
            models: what is served.
            control: answers the calls about that.
        """
        config, middleware = self._config, self.middleware
        middleware.image_values = lambda: max((math.prod(each.bundle.shape) for each in models), default=0)
        workers = min(4, max(1, config.instances_on("cpu") // config.frontends))
        # Two at least: while one decodes something slow, another takes the next.
        self._decoders = Decoders(
            max(2, workers),
            config.max_pixels_per_call,
            config.max_message_bytes,
            lambda reason: self._metrics.failed_decodes.labels(reason).inc(),
        )
        pool = CpuPool(workers, config.max_queue_size, self._decoders)
        self._closers.add(pool.close)
        servicer = GlowServicer(models, control, config, pool)
        glow_service_pb2_grpc.add_GlowServiceServicer_to_server(servicer, middleware)
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            OpenInferenceServicer(models, control, config, pool, self._health.is_serving), middleware
        )
        health.add_to_server(self._health, middleware)
        reflection.add_to_server((SERVICE_NAME, open_inference.SERVICE_NAME), middleware)
        await self._server.start()

    async def ready(self) -> None:
        """Returns when calls can be accepted.

        Raises:
            GlowserveError: the processes that decode pictures do not start.
        """
        assert self._decoders
        try:
            await self._decoders.ready()
        except DecoderError as error:
            raise GlowserveError(str(error)) from error

    def set_health(self, ready: bool, models: Mapping[str, bool]) -> None:
        """See `Health.set`."""
        self._health.set(ready, models)

    async def accept(self) -> None:
        """Accepts calls; health says SERVING."""
        watch = DescriptorWatch(self._most_connections)
        self._metrics.descriptors_short.set_function(lambda: float(watch.are_short()))
        self._watch = asyncio.create_task(watch.run())
        self.middleware.accept()
        self._health.serve()

    async def refuse(self) -> None:
        """Says NOT_SERVING and refuses new calls. Returns when no more calls come, or after a limit."""
        self._drain_end = min(self._drain_end, time.monotonic() + self._config.drain_seconds)
        self._health.stop()
        self.middleware.refuse()
        with suppress(TimeoutError):
            async with asyncio.timeout(last_calls_seconds(self._drain_end - time.monotonic())):
                await self.middleware.quiet()

    async def stop(self) -> None:
        """Refuses new calls, and lets accepted ones finish until `drain_seconds` after the first refusal."""
        await self.refuse()
        left = max(0.0, self._drain_end - time.monotonic())
        drained = asyncio.ensure_future(self._server.stop(left))
        idle = asyncio.ensure_future(self.middleware.idle())
        await asyncio.wait({drained, idle}, return_when=asyncio.FIRST_COMPLETED)
        # Still open are idle connections, and streams of reflection, which clients keep for good.
        await asyncio.wait({drained}, timeout=_LAST_ANSWERS_SECONDS)
        await self._server.stop(0)
        await drained
        idle.cancel()
        if self._watch:
            self._watch.cancel()

    async def abandon(self) -> None:
        """Ends a front that has started and not accepted calls."""
        await self._server.stop(None)

    async def close(self) -> None:
        """Ends the processes that decode pictures."""
        if self._decoders:
            await self._decoders.close()


def last_calls_seconds(drain_seconds: float) -> float:
    """How long a stop waits at most until no more calls come, if accepted calls have so long to finish."""
    return max(_LEAST_LAST_CALLS_SECONDS, drain_seconds)


def cannot_listen(name: str, port: int, host: str, error: OSError) -> str:
    """The sentence about a port that cannot be listened on."""
    reason = "; is it in use?" if error.errno == errno.EADDRINUSE else f": {error.strerror}"
    return f"{name} {port} on {host} cannot be listened on{reason}"


def try_to_bind(host: str, port: int) -> None:
    """Raises OSError where gRPC would fail and write lines of its own to stderr."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _options(config: ServiceConfig, most_connections: int, shares_port: bool) -> list[tuple[str, int]]:
    options = [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _SENT_AHEAD_BYTES),
        # Identity alone. gRPC unpacks a compressed request before it looks at its size: 1 MB would become 1 GB.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # Two servers on one port would share its calls without a word.
        ("grpc.so_reuseport", int(shares_port)),
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
