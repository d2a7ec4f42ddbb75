"""How many front-ends a service has if its settings leave that open.

docs/performance.md has the measurements. A front-end helps only if there are cores for it beside those that run graphs,
and one engine process could feed four to five. On a GPU, calls keep the cores busy, and graphs do not.
"""

from __future__ import annotations

import logging
import math
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

log = logging.getLogger(__name__)


def with_frontends(config: ServiceConfig) -> ServiceConfig:
    """The settings with a number of front-ends that suits the machine, unless they have one; the log says why.

    Whether there is a GPU is not known before a model is loaded: onnxruntime's support for CUDA counts as one.
    """
    if config.frontends:
        return config
    device, memory = config.device, memory_limit()
    has_gpu = device in ("cuda", "tensorrt") or (device == "auto" and has_cuda())
    number = frontends_for(cores(), memory, has_gpu=has_gpu)
    facts = [f"{cores()} cores"]
    if math.isfinite(memory):
        facts.append(f"{memory / 2**30:.3g} GiB of memory")
    if has_gpu:
        facts.append("a GPU")
    log.info("front-ends: %d, chosen for %s", number, ", ".join(facts))
    return replace(config, frontends=number)


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
