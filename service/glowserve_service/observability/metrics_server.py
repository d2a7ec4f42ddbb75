"""The HTTP server that Prometheus scrapes; HTTPS if the service has a certificate."""

from __future__ import annotations

import errno
import io
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import choose_encoder

from glowserve.runtime.errors import GlowserveError
from glowserve_service.errors import ForbiddenError
from glowserve_service.observability import descriptors
from glowserve_service.security.certificates import Certificates
from glowserve_service.security.tokens import Tokens

# For all of a connection: the handshake, the request, the page and the answer. The standard library's time limit is one
# for each read and write, so that a client that sends a byte now and then would stay for days.
_CONNECTION_SECONDS = 10.0
# Each has a thread.
_MOST_CONNECTIONS = 64
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

log = logging.getLogger(__name__)


class MetricsServer(ThreadingMixIn, WSGIServer):
    """Answers scrapes from its own threads, from construction until `close`.

    prometheus_client's server does TLS handshakes in the accepting thread, so that one silent client stops it, and its
    connections may stay for any time and be of any number. Here a connection has a thread for its handshake and its one
    request, and ends after ten seconds, whatever it does. If all threads are taken, the oldest connection ends at once.

    Args:
        host: address to listen on.
        port: 0 for any free port; `server_port` is the port that was taken.
        registry: the metrics.
        certificates: for TLS; None for plain HTTP.
        tokens: if one of them has the right `metrics`, scrapes must carry such a token.

    Raises:
        OSError: the server cannot listen on the port.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        certificates: Certificates | None,
        tokens: Tokens | None,
    ) -> None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, address = found[0][0], found[0][4]
        self._certificates = certificates
        self._free_threads = threading.Semaphore(min(_MOST_CONNECTIONS, max(1, descriptors.limit() // 16)))
        # When each open connection must end, the oldest first. The lock also keeps a socket from being closed, and its
        # descriptor from becoming another's, while it is shut down.
        self._ends: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(address[:2], _Handler)  # type: ignore[arg-type]  # IPv6 has four parts
        self.set_app(_guarded(make_wsgi_app(registry), tokens))
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    def server_bind(self) -> None:
        """Binds. HTTPServer would then ask the resolver for the name of the host, and wait for it."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def close(self) -> None:
        """Stops listening."""
        with suppress(OSError):  # wakes the thread, which by itself looks for the end every half second
            self.socket.shutdown(socket.SHUT_RDWR)
        self.shutdown()
        self.server_close()
        self._thread.join()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accepts a connection."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in _NO_ROOM:  # it stays in the listener's queue, and would be tried again at once
                self._end_oldest()
                time.sleep(0.1)
            raise

    def service_actions(self) -> None:
        """Ends the connections whose time is up; called every half second, and after every connection."""
        now = time.monotonic()
        with self._lock:
            for connection, end in self._ends.items():
                if end <= now:
                    _shut_down(connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a connection's thread. If there are as many as there may be, the oldest connection makes room."""
        patience = 0.0
        while not self._free_threads.acquire(timeout=patience):
            self._end_oldest()
            patience = 0.1
        try:
            super().process_request(request, client_address)
        except BaseException:  # the system has no more threads
            self._free_threads.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """A connection's thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free_threads.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Does the handshake and answers the request, in the connection's own thread."""
        if self._certificates is None:
            with self._limited(request):
                super().finish_request(request, client_address)
            return
        encrypted = self._certificates.context().wrap_socket(
            request, server_side=True, do_handshake_on_connect=False
        )
        with encrypted, self._limited(encrypted):
            encrypted.do_handshake()
            super().finish_request(encrypted, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs a failed connection at debug level: most are the client's doing."""
        log.debug("a scrape failed", exc_info=True)

    @contextmanager
    def _limited(self, connection: socket.socket) -> Iterator[None]:
        with self._lock:
            self._ends[connection] = time.monotonic() + _CONNECTION_SECONDS
        try:
            yield
        finally:
            with self._lock:
                del self._ends[connection]

    def _end_oldest(self) -> None:
        with self._lock:
            if (oldest := next(iter(self._ends), None)) is not None:
                self._ends[oldest] = 0.0
                _shut_down(oldest)


class _Handler(WSGIRequestHandler):
    default_request_version = (
        "HTTP/1.0"  # with that of HTTP/0.9, refusals of malformed requests have no status
    )

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Logs nothing: there is a scrape every few seconds."""

    def get_stderr(self) -> Any:
        """Where wsgiref writes a traceback when a client leaves before its answer: nowhere."""
        return io.StringIO()


def _shut_down(connection: socket.socket) -> None:
    """Wakes a thread that reads or writes: its connection is at an end. The thread closes it."""
    with suppress(OSError):  # the client was first
        # SSLSocket's own method also forgets the encryption, with which the thread may be at work.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _guarded(app: Callable[..., Iterable[bytes]], tokens: Tokens | None) -> Callable[..., Iterable[bytes]]:
    # One page at a time: more would take the interpreter's lock away from calls.
    page = threading.Lock()

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            if tokens is not None and tokens.has("metrics"):
                tokens.check(environ.get("HTTP_AUTHORIZATION", ""), "metrics")
        except GlowserveError as error:
            status = "403 Forbidden" if isinstance(error, ForbiddenError) else "401 Unauthorized"
            start_response(status, [("Content-Type", "text/plain"), ("WWW-Authenticate", "Bearer")])
            return [f"{error}\n".encode()]
        try:
            choose_encoder(environ.get("HTTP_ACCEPT", ""))
        except TypeError:  # prometheus_client's, for a version that is not a number
            start_response("400 Bad Request", [("Content-Type", "text/plain")])
            return [b"the version in the header Accept is not a number; leave it out, or ask for 1.0.0\n"]
        try:
            with page:
                return app(environ, start_response)
        except Exception:
            log.exception("the page of metrics failed")
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
            return [b"internal error; it is in the server's log\n"]

    return answer
