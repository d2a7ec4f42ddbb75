"""Who may call: certificates, tokens and their rights. Files are read again when they change."""

from __future__ import annotations

import hashlib
import hmac
import logging
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME

from glowserve.credentials import is_loopback, read_authority, read_pair
from glowserve.runtime.errors import GlowserveError
from glowserve_service.config import ServiceConfig
from glowserve_service.errors import ForbiddenError, UnauthenticatedError

GROUPS = ("infer", "admin", "metrics")
# A token of letters and digits that is as long cannot be guessed.
_SHORTEST_TOKEN = 20
_ADMIN_METHODS = frozenset({"LoadModel", "UnloadModel", "RepositoryModelLoad", "RepositoryModelUnload"})
# Orchestrators have no token.
_OPEN_METHODS = frozenset({"ServerLive", "ServerReady"})

log = logging.getLogger(__name__)

T = TypeVar("T")


class Reloaded(Generic[T]):
    """What files say; they are read again when one has changed. What cannot be read is logged, and the old stays.

    Args:
        paths: the files.
        read: reads them, or raises ValueError.

    Raises:
        ValueError: they cannot be read now.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._seen = self._state()
        self._value = read()

    def current(self) -> T:
        """What they say; the same object until it changes. From any thread."""
        with self._lock:
            state = self._state()
            if state != self._seen:
                self._reload(state)
            return self._value

    def _reload(self, state: object) -> None:
        names = ", ".join(map(str, self._paths))
        try:
            value = self._read()
        except ValueError as error:
            log.error("changed files are not used, those read before are: %s", error)
        else:
            if self._state() != state:  # some old and some new, perhaps: next time
                return
            self._value = value
            log.info("read again: %s", names)
        self._seen = state

    def _state(self) -> object:
        def one(path: Path) -> object:
            try:
                found = path.stat()
            except OSError:
                return None
            return found.st_mtime_ns, found.st_size, found.st_ino

        return [one(path) for path in self._paths]


@dataclass(frozen=True)
class _Loaded:
    context: ssl.SSLContext
    pair: tuple[bytes, bytes]
    client_ca: bytes | None


class Certificates:
    """The service's certificate, its key, and the authority of its clients, if they need certificates.

    Args:
        certificate: PEM, with the chain.
        key: PEM.
        client_ca: PEM; with it a client must show a certificate that this authority has signed.

    Raises:
        ValueError: a file cannot be used.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        def read() -> _Loaded:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            pair = read_pair(context, certificate, key)
            if client_ca is None:
                return _Loaded(context, pair, None)
            context.verify_mode = ssl.CERT_REQUIRED
            return _Loaded(context, pair, read_authority(context, client_ca))

        self._with_clients = client_ca is not None
        self._files = Reloaded([path for path in (certificate, key, client_ca) if path], read)

    def context(self) -> ssl.SSLContext:
        """For a connection that has arrived at another port than gRPC's."""
        return self._files.current().context

    def credentials(self) -> grpc.ServerCredentials:
        """For gRPC's port; it asks for each connection whether the files have changed."""
        given = self._files.current()

        def configuration(loaded: _Loaded) -> grpc.ServerCertificateConfiguration:
            chain, key = loaded.pair
            return grpc.ssl_server_certificate_configuration([(key, chain)], loaded.client_ca)

        def changed() -> Any:
            nonlocal given
            if (loaded := self._files.current()) is given:
                return None
            given = loaded
            return configuration(loaded)

        return grpc.dynamic_ssl_server_credentials(configuration(given), changed, self._with_clients)


@dataclass(frozen=True)
class _Token:
    digest: bytes
    name: str
    groups: frozenset[str]


class Tokens:
    """The tokens that a file lists, and what each may do.

    A line is NAME TOKEN, or NAME TOKEN GROUPS with some of infer,admin,metrics; infer alone if left out. Empty lines
    and those that begin with # are comments.

    Args:
        path: the file.

    Raises:
        ValueError: it cannot be read, or a line is not as above; tokens are not in the message.
    """

    def __init__(self, path: Path) -> None:
        self._file = Reloaded([path], lambda: _read_tokens(path))

    def check(self, authorization: str, group: str) -> None:
        """Lets a call pass that says "Bearer TOKEN".

        Raises:
            UnauthenticatedError: there is no token, or a wrong one.
            ForbiddenError: it has no right to calls of that group.
        """
        scheme, _, presented = authorization.partition(" ")
        if scheme.lower() != "bearer" or not presented:
            raise UnauthenticatedError('a token is needed here: send "authorization: Bearer TOKEN"')
        digest = _digest(presented.strip())
        # All are compared, each in constant time: how long it takes tells nothing.
        found = [token for token in self._file.current() if hmac.compare_digest(token.digest, digest)]
        if not found:
            raise UnauthenticatedError("the token is not one that this service knows")
        if group not in found[0].groups:
            raise ForbiddenError(f"the token of {found[0].name!r} has no right to {group} calls")

    def has(self, group: str) -> bool:
        """Whether a token has the right to that group."""
        return any(group in token.groups for token in self._file.current())


def refusal(tokens: Tokens | None, call: Any) -> GlowserveError | None:
    """Why a gRPC call, of which nothing but its headers has been read, is not let in; None if it is.

    Health is told to all: orchestrators ask for it, and have no token.
    """
    service, _, method = call.method.removeprefix("/").rpartition("/")
    if tokens is None or service == HEALTH_NAME or method in _OPEN_METHODS:
        return None
    try:
        sent = dict(call.invocation_metadata).get("authorization", "")
        tokens.check(sent, "admin" if method in _ADMIN_METHODS else "infer")
    except GlowserveError as error:
        return error
    return None


def warning(config: ServiceConfig) -> str | None:
    """What is dangerous about these settings, and the remedy, in a sentence; None if nothing is."""
    missing = []
    if config.tls_cert is None:
        missing.append("calls are not encrypted (give --tls-cert and --tls-key)")
    if config.tokens is None and config.tls_client_ca is None:
        admin = ", load and unload models" if config.admin == "on" else ""
        missing.append(f"whoever reaches it may call{admin} (give --tokens, or --tls-client-ca)")
    if is_loopback(config.host) or not missing:
        return None
    return f"{config.host} can be reached from outside this machine, and {' and '.join(missing)}"


def _read_tokens(path: Path) -> list[_Token]:
    try:
        lines = path.read_text("ascii").splitlines()
    except OSError as error:
        raise ValueError(f"tokens {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"tokens {path} has characters that are not ASCII") from None
    entries = ((number, line.split()) for number, line in enumerate(lines, 1))
    tokens = [
        _token(f"tokens {path}, line {number}", words)
        for number, words in entries
        if words and not words[0].startswith("#")
    ]
    if not tokens:
        raise ValueError(f"tokens {path} is empty; write a line NAME TOKEN for each caller")
    for what in ("name", "digest"):
        if len({getattr(token, what) for token in tokens}) < len(tokens):
            raise ValueError(f"tokens {path} has the same {'name' if what == 'name' else 'token'} twice")
    return tokens


def _token(where: str, words: Sequence[str]) -> _Token:
    if len(words) not in (2, 3):
        raise ValueError(f"{where} has {len(words)} words; write NAME TOKEN, or NAME TOKEN GROUPS")
    name, token, *rest = words
    groups = rest[0].split(",") if rest else ["infer"]
    # Words are not repeated: whichever is out of place may be the token.
    if len(token) < _SHORTEST_TOKEN:
        raise ValueError(
            f"{where}: the token has {len(token)} characters; it needs {_SHORTEST_TOKEN} or more"
        )
    if not set(groups) <= set(GROUPS):
        raise ValueError(f"{where}: the third word must be one or more of {','.join(GROUPS)}")
    return _Token(_digest(token), name, frozenset(groups))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
