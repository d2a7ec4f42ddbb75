"""The clients' gRPC channels: target, encryption, token, retries, message sizes and keepalive."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import grpc

from glowserve.credentials import FilePath, call_metadata, channel_credentials, proxy_options

TIMEOUT_SECONDS = 60.0
"""How long one call may take unless a client is given another timeout."""

# Every method is idempotent, so gRPC may retry a call that the server did not begin.
_RETRY = {
    "methodConfig": [
        {
            "name": [{"service": "glowserve.v1.GlowService"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

KEEPALIVE_MS = 30_000
"""How often a waiting call checks its connection. The server must permit pings at this interval."""

CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", json.dumps(_RETRY)),
    # gRPC does not retry a request that is larger than this buffer. The client's requests have up to 16 MiB.
    ("grpc.per_rpc_retry_buffer_size", 32 * 2**20),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 10_000),
    # The default allows two pings without data, after which a waiting call would check its connection no more.
    ("grpc.http2.max_pings_without_data", 0),
]


@dataclass(frozen=True, kw_only=True)
class ChannelSettings:
    """The target of a client's calls, their timeout, and their protection; `Client` explains each setting."""

    target: str
    timeout: float = TIMEOUT_SECONDS
    tls: bool = False
    ca: FilePath | None = None
    cert: FilePath | None = None
    key: FilePath | None = None
    token: str | None = None

    def open(self, channels: Any) -> tuple[Any, tuple[tuple[str, str], ...]]:
        """Opens a channel. It connects at the first call.

        Args:
            channels: the module that makes channels, `grpc` or `grpc.aio`.

        Returns:
            The channel, and the metadata of each call.

        Raises:
            ValueError: a file cannot be used, or the token is malformed or would cross a network unencrypted.
        """
        encryption: grpc.ChannelCredentials | None = channel_credentials(
            tls=self.tls, ca=self.ca, cert=self.cert, key=self.key
        )
        metadata = call_metadata(self.token, self.target, encrypted=encryption is not None)
        options = [*CHANNEL_OPTIONS, *proxy_options(self.target)]
        if encryption is None:
            return channels.insecure_channel(self.target, options), metadata
        return channels.secure_channel(self.target, encryption, options), metadata


def check_transport(settings: ChannelSettings, transport: object | None) -> None:
    """Checks that a client has either a target or a transport.

    Args:
        settings: the client's; with a transport, every setting must have its default.
        transport: the transport that the client was given instead of a target.

    Raises:
        ValueError: there is neither a target nor a transport, or there are both.
    """
    if transport is None and not settings.target:
        raise ValueError("target is ''; pass HOST:PORT of a service, or a transport")
    if transport is not None and settings != ChannelSettings(target=""):
        raise ValueError(
            f"target is {settings.target!r} and transport is {transport!r}; with a transport, leave out the target and "
            "all of its settings"
        )


def sample_timeout(timeout: float, n: int) -> float:
    """The timeout of a stream of n samples, in seconds: one second more for each sample."""
    return timeout + n
