"""How many front-ends a service has if its settings leave that open.

docs/performance.md has the measurements. A front-end helps only if there are cores for it beside those that run graphs,
and one engine process could feed four to five. On a GPU, calls keep the cores busy, and graphs do not.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from glowserve.cores import cores
from glowserve.memory import memory_limit
from glowserve.runtime.sessions import has_cuda
from glowserve_service.config import ServiceConfig

_MOST = 4
_CORES_EACH, _CORES_EACH_BESIDE_A_GPU = 4, 2
# A front-end takes 160 MiB with its decoders, and a decoder more than a GiB for the largest pictures.
_MEMORY_EACH = 2 * 2**30


def with_frontends(config: ServiceConfig) -> ServiceConfig:
    """The settings with a number of front-ends that suits the machine, unless they have one."""
    if config.frontends:
        return config
    return replace(config, frontends=frontends_for(cores(), _memory(), has_gpu=_has_gpu(config)))


def reason(config: ServiceConfig) -> str:
    """Why `with_frontends` has chosen the number that these settings have, for the log."""
    facts = [f"{cores()} cores"]
    if (memory := _memory()) < _MOST * _MEMORY_EACH:
        facts.append(f"{memory / 2**30:.3g} GiB of memory")
    if _has_gpu(config):
        facts.append("a GPU")
    return f"front-ends: {config.frontends}, chosen for {', '.join(facts)}"


def frontends_for(cores: int, memory: float, *, has_gpu: bool) -> int:
    """How many front-ends suit a machine; 1 for none beside the engine process.

    Args:
        cores: that the service may use.
        memory: that it may use, in bytes; infinity without a limit.
        has_gpu: whether graphs run on a GPU.
    """
    if sys.platform != "linux":
        return 1
    by_cores = cores // (_CORES_EACH_BESIDE_A_GPU if has_gpu else _CORES_EACH)
    return max(1, int(min(by_cores, memory / _MEMORY_EACH, _MOST)))


def _memory() -> float:
    """What this process may use, in bytes: its limit, or what the machine has."""
    return min(memory_limit(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _has_gpu(config: ServiceConfig) -> bool:
    """Whether graphs run on a GPU. Not known before a model is loaded: onnxruntime's support for CUDA counts as one."""
    return config.device in ("cuda", "tensorrt") or (config.device == "auto" and has_cuda())
