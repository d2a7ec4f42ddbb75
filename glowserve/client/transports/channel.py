"""How the clients' gRPC channels are set up: retries, sizes, keepalive, and who may read along."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import grpc

from glowserve.credentials import FilePath, call_metadata, channel_credentials

TIMEOUT = 60.0
"""Seconds that one call may take, unless a client is told otherwise."""

# gRPC itself retries what was not begun: nothing that the service does has side effects.
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
"""How often a call that waits checks that the connection lives; servers have to allow it."""

CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", json.dumps(_RETRY)),
    # A request that does not fit in here is not retried; portions of images have up to 16 MiB.
    ("grpc.per_rpc_retry_buffer_size", 32 * 2**20),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without it, a call that waits longer than two pings take sends no more pings.
    ("grpc.http2.max_pings_without_data", 0),
]


@dataclass(frozen=True, kw_only=True)
class ChannelSettings:
    """Where a client's calls go, and how they are protected; `Client` says what each setting means."""

    target: str
    timeout: float = TIMEOUT
    tls: bool = False
    ca: FilePath | None = None
    cert: FilePath | None = None
    key: FilePath | None = None
    token: str | None = None

    def open(self, channels: Any) -> tuple[Any, tuple[tuple[str, str], ...]]:
        """A channel, and the metadata that each call carries.

        Args:
            channels: makes them: `grpc` or `grpc.aio`.

        Raises:
            ValueError: a file cannot be used, or the token would cross a network in the clear.
        """
        encryption: grpc.ChannelCredentials | None = channel_credentials(
            tls=self.tls, ca=self.ca, cert=self.cert, key=self.key
        )
        metadata = call_metadata(self.token, self.target, encrypted=encryption is not None)
        if encryption is None:
            return channels.insecure_channel(self.target, CHANNEL_OPTIONS), metadata
        return channels.secure_channel(self.target, encryption, CHANNEL_OPTIONS), metadata


def sample_timeout(timeout: float, n: int) -> float:
    """Seconds for a whole stream of n samples: a second for each on top."""
    return timeout + n
