"""How a service is set up. `glowserve serve` has a flag and an environment variable for each field."""

from __future__ import annotations

import ipaddress
import math
import re
import sys
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from glowserve.cores import cores
from glowserve.memory import memory_limit
from glowserve.runtime.config import DEVICES, Limits, RuntimeConfig, bucket_sizes
from glowserve_service.versions import VersionPolicy

LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")
_HOST_NAME = re.compile(r"[\w.-]{1,253}")
# Eleven days: gRPC counts milliseconds in 32 bits.
_MOST_SECONDS = 1_000_000.0
# gRPC and its messages count streams and images in 32 bits.
_MOST = 2**31 - 1


class Range(NamedTuple):
    """The numbers that a setting may have."""

    least: float
    most: float
    or_zero: bool
    """Whether it may also be 0, which then means something of its own."""


def _setting(
    default: Any,
    text: str,
    variable: str = "",
    *,
    least: float | None = None,
    most: float | None = None,
    or_zero: bool = False,
) -> Any:
    """A field. Unless it has other ends, a whole number lies in 1 to _MOST, and a time in 0 to _MOST_SECONDS."""
    numbers = None
    if isinstance(default, int | float):
        first, last = (1, _MOST) if isinstance(default, int) else (0, _MOST_SECONDS)
        numbers = Range(first if least is None else least, last if most is None else most, or_zero)
    return field(default=default, metadata={"help": text, "variable": variable, "range": numbers})


def variable(setting: Field[Any]) -> str:
    """The environment variable of a field of ServiceConfig."""
    return setting.metadata.get("variable") or f"GLOWSERVE_{setting.name.upper()}"


# Of one stream. A request takes some ten kilobytes while it is worked on, however small its image is.
_REQUESTS_AT_ONCE = 32

# What a service of a tiny model takes with its decoders, and room for what requests take while they arrive.
_OWN_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """Settings of a service; the defaults suit one model on one machine."""

    repository: Path = field(metadata={"help": "folder of bundles, MODEL/VERSION/"})
    versions: str = _setting(
        "1", "how many of the newest versions are served, or MODEL=VERSION,... for some, or both"
    )
    # A poll lists the folders and stats four files of each version that could be served: that is cheap.
    poll_seconds: float = _setting(
        10.0,
        "seconds between two polls of the repository; 0: only at the start and on request",
        least=0.1,
        or_zero=True,
    )
    load_timeout_seconds: float = _setting(
        600.0,
        "how long loading a version, listing the repository, or opening the graph of explanations may take; 0 for any "
        "time",
        least=0.1,
        or_zero=True,
    )
    canary_seconds: float = _setting(
        30.0,
        "seconds between two canary checks of each model; 0: only at loading, and a failed model stays not ready",
        least=0.1,
        or_zero=True,
    )
    wait_for_models: str = _setting(
        "off",
        "on, or off: whether a service without a model to serve starts, not ready, and serves models as they appear",
    )
    admin: str = _setting("off", "on, or off: whether calls may load and unload models")
    host: str = _setting(
        "127.0.0.1", "IP address to listen on, or its name; 0.0.0.0 for all, :: for all of IPv6, too"
    )
    # Kubernetes sets GLOWSERVE_PORT, to something else, beside a Service called glowserve.
    port: int = _setting(
        8001, "port of gRPC; 0 for any that is free", "GLOWSERVE_GRPC_PORT", least=0, most=65_535
    )
    metrics_port: int = _setting(
        8002, "port of Prometheus metrics; 0 for any that is free", least=0, most=65_535
    )
    frontends: int = _setting(
        0,
        "processes that accept calls for the one that runs the models; 1 for that process itself; more need Linux; 0 "
        "for a number that suits the machine",
        least=0,
        most=64,
    )
    device: str = _setting(
        RuntimeConfig.device, "auto (CUDA if it works, else the CPU), cpu, cuda or tensorrt"
    )
    gpu_memory_mib: int = _setting(
        RuntimeConfig.gpu_memory_mib,
        "most memory of the GPU for each graph, of which a model has two, and three once it explains, in MiB; 0 for "
        "all there is",
        least=0,
        most=2**24,
    )
    instances: int = _setting(
        0, "batches that run side by side; 0 for one a core on the CPU, one on a GPU", least=0, most=1024
    )
    threads: int = _setting(
        0,
        "CPU threads of a batch that runs while no other runs or waits; 0 for one a core; 1 for one, which takes less "
        "memory",
        least=0,
        most=1024,
    )
    max_batch_size: int = _setting(Limits.max_batch_size, "most images in a batch", most=16_384)
    max_queue_delay_ms: float = _setting(
        0.0, "how long an image may wait for more images although a batch could run"
    )
    max_queue_size: int = _setting(
        1024, "most images that wait, for each model and direction; more are refused"
    )
    max_images_per_call: int = _setting(Limits.max_images, "most images that a call may bring")
    max_samples_per_call: int = _setting(Limits.max_samples, "most images that a call may ask for")
    max_pixels_per_call: int = _setting(
        Limits.max_pixels,
        "most pixels that a call's pictures may have together; a process that decodes takes 20 bytes for each",
    )
    max_message_mib: int = _setting(
        64, "largest request, in MiB, and no more than a sixteenth of a container's memory", most=2047
    )
    max_concurrent_streams: int = _setting(
        1024, "most calls at once on a connection; more wait in the client"
    )
    max_concurrent_calls: int = _setting(
        2048, "most calls at once on all connections; more are refused, health checks excepted"
    )
    max_received_mib: int = _setting(
        1024,
        "most bytes of requests that are received and not answered, in MiB, and no more than a quarter of a "
        "container's memory beyond 256 MiB; more are refused, but one of the largest size is always accepted",
    )
    max_connections: int = _setting(
        10_000, "most connections at once to the port of gRPC; further ones are closed at once"
    )
    max_connection_age_seconds: float = _setting(
        3600.0,
        "how old a connection may get before clients are told to open another; 0 for any age",
        least=0.1,
        or_zero=True,
    )
    tls_cert: Path | None = field(
        default=None, metadata={"help": "the service's certificate, PEM, with its chain; encrypts both ports"}
    )
    tls_key: Path | None = field(default=None, metadata={"help": "its key, PEM, without a password"})
    tls_client_ca: Path | None = field(
        default=None, metadata={"help": "turn away clients without a certificate of this authority, PEM"}
    )
    tokens: Path | None = field(
        default=None, metadata={"help": "file of the tokens that may call, lines NAME TOKEN [GROUPS]"}
    )
    log_format: str = _setting("text", "text, or json: an object a line")
    log_level: str = _setting(
        "info", "least that is logged: debug, info, warning or error; info has a line a call"
    )
    drain_seconds: float = _setting(30.0, "how long accepted calls may take to finish after SIGTERM")

    def __post_init__(self) -> None:
        self._check_words()
        VersionPolicy.parse(self.versions)
        self._check_numbers()
        # As in a URL, an IPv6 address may stand in brackets.
        object.__setattr__(self, "host", _host(self.host))
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together; give both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca is of no use without tls_cert and tls_key; give these, too")
        if self.frontends > 1 and sys.platform != "linux":
            raise ValueError(f"frontends is {self.frontends}; on {sys.platform} it must be 1")
        for name in ("max_images_per_call", "max_batch_size"):
            if self.max_queue_size < getattr(self, name):
                raise ValueError(
                    f"max_queue_size is {self.max_queue_size}; it must be at least {name}, "
                    f"{getattr(self, name)}, or such a call could never run"
                )

    def address(self, port: int) -> str:
        """HOST:PORT; an IPv6 address stands in brackets."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    def _check_numbers(self) -> None:
        for setting in fields(self):
            if (numbers := setting.metadata.get("range")) is None:
                continue
            value, whole = getattr(self, setting.name), isinstance(setting.default, int)
            if isinstance(value, int if whole else int | float) and (
                numbers.least <= value <= numbers.most or (numbers.or_zero and value == 0)
            ):
                continue
            raise ValueError(
                f"{setting.name} is {value}; it must be {'0, or ' if numbers.or_zero else ''}"
                f"a {'whole ' if whole else ''}number from {numbers.least:.10g} to {numbers.most:.10g}"
            )

    def _check_words(self) -> None:
        for name, known in (
            ("device", DEVICES),
            ("wait_for_models", ("off", "on")),
            ("admin", ("off", "on")),
            ("log_format", LOG_FORMATS),
            ("log_level", LOG_LEVELS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")

    @property
    def max_message_bytes(self) -> int:
        """The size of the largest request. While it arrives and is copied, it takes up to four times as much."""
        return int(min(self.max_message_mib * 2**20, memory_limit() / 16))

    @property
    def max_received_bytes(self) -> int:
        """The size of all requests together that are received and not answered.

        It takes a quarter of the memory that the process may use at most, less `_OWN_BYTES`: parsed, requests take as
        much again, and others are arriving.
        """
        received = min(self.max_received_mib * 2**20, (memory_limit() - _OWN_BYTES) / 4)
        return max(int(received), self.max_message_bytes)

    def of_frontend(self, port: int) -> ServiceConfig:
        """The settings of one of several front-ends: its share of the limits of calls, connections and bytes.

        Args:
            port: that all of them listen on.
        """

        def share(most: int) -> int:
            return math.ceil(most / self.frontends)

        return replace(
            self,
            port=port,
            max_concurrent_calls=share(self.max_concurrent_calls),
            max_received_mib=share(self.max_received_bytes // 2**20),
            max_connections=share(self.max_connections),
        )

    def share_of_a_call(self, images: int, size: int) -> float:
        """The share of a call's limits that a request of a stream takes, with so many images in so many bytes."""
        return max(images / self.max_images_per_call, size / self.max_message_bytes, 1 / _REQUESTS_AT_ONCE)

    @property
    def runtime(self) -> RuntimeConfig:
        """How each model is run: side by side, runs of one thread beat one run with many threads."""
        all_cores = self.threads or cores()
        return RuntimeConfig(
            device=self.device,
            threads=1 if self.instances != 1 else self.threads,
            wide_threads=all_cores if all_cores > 1 and self.instances != 1 else 0,
            gpu_memory_mib=self.gpu_memory_mib,
            batch_sizes=bucket_sizes(self.max_batch_size),
        )

    @property
    def limits(self) -> Limits:
        """How much one request may bring or ask for."""
        return Limits(
            max_images=self.max_images_per_call,
            max_samples=self.max_samples_per_call,
            max_pixels=self.max_pixels_per_call,
            max_batch_size=self.max_batch_size,
        )

    def instances_on(self, device: str) -> int:
        """How many batches run side by side on "cpu", "cuda" or "tensorrt"."""
        return self.instances or (cores() if device == "cpu" else 1)


def _host(text: str) -> str:
    """An IP address without brackets, or a name.

    Raises:
        ValueError: it is something else, such as a URL.
    """
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        if bare is not text or not _HOST_NAME.fullmatch(text):
            raise ValueError(
                f"host is {text!r}; it must be an IP address, such as 127.0.0.1, 0.0.0.0, ::1 or ::, or the name of one"
            ) from None
    return bare
