"""The clients' gRPC channels: target, encryption, token, retries, message sizes and keepalive."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import grpc

from glowserve.client.transports.target import resolved_target
from glowserve.credentials import FilePath, call_metadata, channel_credentials, proxy_options

TIMEOUT_SECONDS = 60.0
"""How long one call may take unless a client is given another timeout."""

# Every method is idempotent, so gRPC may retry a call that the server did not begin.
_RETRY: dict[str, Any] = {
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

# Calls take turns on the servers of a name, and leave out those that are not SERVING: they load, drain or fail.
_BALANCING: dict[str, Any] = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": "glowserve.v1.GlowService"},
}
_BALANCED = ("dns:", "ipv4:", "ipv6:")
"""The schemes of targets that name several servers."""

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
    # The default is two minutes, for which calls would fail although the service is back.
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # The default is 30 s: a client whose servers are replaced faster than that would know none of the new ones when the
    # last old one goes. A second is within the time of the attempts.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
]


@dataclass(frozen=True, kw_only=True)
class ChannelSettings:
    """The target of a client's calls, their timeout, and their protection; `Client` explains each setting.

    Raises:
        ValueError: the timeout is not a number above 0.
    """

    target: str
    timeout: float = TIMEOUT_SECONDS
    tls: bool = False
    ca: FilePath | None = None
    cert: FilePath | None = None
    key: FilePath | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        number = isinstance(self.timeout, Real) and not isinstance(self.timeout, bool)
        if not (number and self.timeout > 0):
            raise ValueError(
                f"timeout is {self.timeout!r}; pass a number of seconds above 0, or math.inf for no limit"
            )
        object.__setattr__(self, "timeout", float(self.timeout))  # sums in float32 would lose seconds


class ChannelFactory:
    """Opens channels to one target. Certificates are read when it is made, so that it fails early.

    Args:
        settings: the target and its protection.

    Raises:
        TypeError: the target is not a string.
        ValueError: the target is none, a file cannot be used, or the token is malformed or would cross a network
            unencrypted.
    """

    def __init__(self, settings: ChannelSettings) -> None:
        self._target = resolved_target(settings.target)
        self._encryption: grpc.ChannelCredentials | None = channel_credentials(
            tls=settings.tls, ca=settings.ca, cert=settings.cert, key=settings.key
        )
        self.metadata = call_metadata(settings.token, self._target, encrypted=self._encryption is not None)
        """The metadata of each call."""

    def open(self, channels: Any) -> Any:
        """Opens a channel. It connects at the first call.

        Args:
            channels: the module that makes channels, `grpc` or `grpc.aio`.
        """
        options = [*CHANNEL_OPTIONS, *proxy_options(self._target)]
        if self._target.startswith(_BALANCED):
            options = list((dict(options) | {"grpc.service_config": json.dumps(_RETRY | _BALANCING)}).items())
        if self._encryption is None:
            return channels.insecure_channel(self._target, options)
        return channels.secure_channel(self._target, self._encryption, options)


def check_transport(settings: ChannelSettings, transport: object | None) -> None:
    """Checks that a client with a transport has no target; without one, `ChannelFactory` checks the target.

    Args:
        settings: the client's; with a transport, every setting must have its default.
        transport: the transport that the client was given instead of a target.

    Raises:
        ValueError: there are both.
    """
    if transport is not None and settings != ChannelSettings(target=""):
        raise ValueError(
            f"target is {settings.target!r} and transport is {transport!r}; with a transport, leave out the target and "
            "all of its settings"
        )


def sample_timeout(timeout: float, n: int) -> float:
    """The timeout of a stream of n samples, in seconds: one second more for each sample."""
    return timeout + n
