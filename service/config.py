"""How a service is set up. `glowserve serve` has a flag and an environment variable for each field."""

from __future__ import annotations

import math
import os
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import Any

DEVICES = ("auto", "cpu", "cuda")


def _setting(default: Any, text: str, variable: str = "") -> Any:
    return field(default=default, metadata={"help": text, "variable": variable})


def variable(setting: Field[Any]) -> str:
    """The environment variable of a field of ServiceConfig."""
    return setting.metadata.get("variable") or f"GLOWSERVE_{setting.name.upper()}"


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """Settings of a service; the defaults suit one model on one machine."""

    repository: Path = field(metadata={"help": "folder of bundles, MODEL/VERSION/"})
    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 for all")
    # Kubernetes sets GLOWSERVE_PORT, to something else, beside a Service called glowserve.
    port: int = _setting(8001, "port of gRPC; 0 for any that is free", "GLOWSERVE_GRPC_PORT")
    metrics_port: int = _setting(8002, "port of Prometheus metrics; 0 for any that is free")
    device: str = _setting("auto", "auto (the GPU if it works, else the CPU), cpu or cuda")
    instances: int = _setting(0, "batches that run side by side; 0 for one a core on the CPU, one on a GPU")
    max_batch_size: int = _setting(32, "most images in a batch")
    max_queue_delay_ms: float = _setting(0.0, "how long an image may wait for company when a batch could run")
    max_queue_size: int = _setting(1024, "most images that wait, by model and direction; more are refused")
    max_images_per_call: int = _setting(256, "most images that a call may bring")
    max_samples_per_call: int = _setting(100_000, "most images that a call may ask for")
    max_pixels_per_call: int = _setting(32_000_000, "most pixels that a call's pictures may have together")
    max_message_mib: int = _setting(64, "largest request, in MiB")
    drain_seconds: float = _setting(30.0, "how long accepted calls may take to finish after SIGTERM")

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ValueError(f"device is {self.device!r}; it must be one of {', '.join(DEVICES)}")
        for name in ("port", "metrics_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in 0 to 65535")
        for name in ("max_queue_delay_ms", "drain_seconds", "instances"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        for name, value in vars(self).items():
            if name.startswith("max_") and isinstance(value, int) and value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")
        if self.max_message_mib > 2047:
            raise ValueError(f"max_message_mib is {self.max_message_mib}; gRPC takes at most 2047")
        for name in ("max_images_per_call", "max_batch_size"):
            if self.max_queue_size < getattr(self, name):
                raise ValueError(
                    f"max_queue_size is {self.max_queue_size}; it must be at least {name}, "
                    f"{getattr(self, name)}, or such a call could never run"
                )

    def instances_on(self, device: str) -> int:
        """How many batches run side by side on "cpu" or "cuda"."""
        return self.instances or (_cores() if device == "cpu" else 1)


def _cores() -> int:
    """Those that this process may use, where the system can tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
