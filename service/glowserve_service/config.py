"""How a service is set up. `glowserve serve` has a flag and an environment variable for each field."""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import Any

from glowserve.cores import cores
from glowserve.runtime.config import DEVICES, Limits, RuntimeConfig, bucket_sizes
from glowserve_service.versions import VersionPolicy

LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


def _setting(default: Any, text: str, variable: str = "") -> Any:
    return field(default=default, metadata={"help": text, "variable": variable})


def variable(setting: Field[Any]) -> str:
    """The environment variable of a field of ServiceConfig."""
    return setting.metadata.get("variable") or f"GLOWSERVE_{setting.name.upper()}"


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
    )
    load_timeout_seconds: float = _setting(
        600.0, "how long loading a version, or listing the repository, may take; 0 for any time"
    )
    canary_seconds: float = _setting(
        30.0,
        "seconds between two canary checks of each model; 0: only at loading, and a failed model stays not ready",
    )
    admin: str = _setting("off", "on, or off: whether calls may load and unload models")
    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 for all")
    # Kubernetes sets GLOWSERVE_PORT, to something else, beside a Service called glowserve.
    port: int = _setting(8001, "port of gRPC; 0 for any that is free", "GLOWSERVE_GRPC_PORT")
    metrics_port: int = _setting(8002, "port of Prometheus metrics; 0 for any that is free")
    device: str = _setting(
        RuntimeConfig.device, "auto (CUDA if it works, else the CPU), cpu, cuda or tensorrt"
    )
    gpu_memory_mib: int = _setting(
        RuntimeConfig.gpu_memory_mib,
        "most memory of the GPU for each graph, of which a model has two, in MiB; 0 for all there is",
    )
    instances: int = _setting(0, "batches that run side by side; 0 for one a core on the CPU, one on a GPU")
    max_batch_size: int = _setting(Limits.max_batch_size, "most images in a batch")
    max_queue_delay_ms: float = _setting(
        0.0, "how long an image may wait for more images although a batch could run"
    )
    max_queue_size: int = _setting(
        1024, "most images that wait, for each model and direction; more are refused"
    )
    max_images_per_call: int = _setting(Limits.max_images, "most images that a call may bring")
    max_samples_per_call: int = _setting(Limits.max_samples, "most images that a call may ask for")
    max_pixels_per_call: int = _setting(
        Limits.max_pixels, "most pixels that a call's pictures may have together"
    )
    max_message_mib: int = _setting(64, "largest request, in MiB")
    max_concurrent_streams: int = _setting(
        1024, "most calls at once on a connection; more wait in the client"
    )
    max_connection_age_seconds: float = _setting(
        3600.0, "how old a connection may get before clients are told to open another; 0 for any age"
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
        for name in ("port", "metrics_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in 0 to 65535")
        for name, value in vars(self).items():
            duration = name.endswith(("_seconds", "_ms")) or name in ("instances", "gpu_memory_mib")
            if duration and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value}; it must be 0 or more")
        for name, value in vars(self).items():
            if name.startswith("max_") and isinstance(value, int) and value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")
        if self.max_message_mib > 2047:
            raise ValueError(f"max_message_mib is {self.max_message_mib}; gRPC takes at most 2047")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together; give both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca is of no use without tls_cert and tls_key; give these, too")
        for name in ("max_images_per_call", "max_batch_size"):
            if self.max_queue_size < getattr(self, name):
                raise ValueError(
                    f"max_queue_size is {self.max_queue_size}; it must be at least {name}, "
                    f"{getattr(self, name)}, or such a call could never run"
                )

    def address(self, port: int) -> str:
        """HOST:PORT; an IPv6 address stands in brackets."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    def _check_words(self) -> None:
        for name, known in (
            ("device", DEVICES),
            ("admin", ("off", "on")),
            ("log_format", LOG_FORMATS),
            ("log_level", LOG_LEVELS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")

    def share_of_a_call(self, images: int, size: int) -> float:
        """The share of what one call may bring that so many images in so many bytes are; at least that of one image."""
        return max(max(images, 1) / self.max_images_per_call, size / (self.max_message_mib * 2**20))

    @property
    def runtime(self) -> RuntimeConfig:
        """How each model is run: side by side, runs of one thread beat one run with many threads."""
        return RuntimeConfig(
            device=self.device,
            threads=1 if self.instances != 1 else 0,
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
