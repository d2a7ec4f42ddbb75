"""The HTTP server that Prometheus scrapes; HTTPS if the service has a certificate."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import choose_encoder

from glowserve.runtime.errors import GlowserveError
from glowserve_service.errors import ForbiddenError
from glowserve_service.security.certificates import Certificates
from glowserve_service.security.tokens import Tokens

# For each read and write of a connection: the handshake, the request, the answer.
_TIMEOUT_SECONDS = 10.0

log = logging.getLogger(__name__)


class MetricsServer(ThreadingMixIn, WSGIServer):
    """Answers scrapes from its own threads, from construction until `close`.

    prometheus_client's server does TLS handshakes in the accepting thread, so that one silent client stops it. This one
    does them in a thread for each connection.

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

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Does the handshake and answers the request, in the connection's own thread."""
        request.settimeout(_TIMEOUT_SECONDS)
        if self._certificates is None:
            return super().finish_request(request, client_address)
        with self._certificates.context().wrap_socket(request, server_side=True) as encrypted:
            return super().finish_request(encrypted, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs a failed connection at debug level: most are the client's doing."""
        log.debug("a scrape failed", exc_info=True)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Logs nothing: there is a scrape every few seconds."""


def _guarded(app: Callable[..., Iterable[bytes]], tokens: Tokens | None) -> Callable[..., Iterable[bytes]]:
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
        return app(environ, start_response)

    return answer
