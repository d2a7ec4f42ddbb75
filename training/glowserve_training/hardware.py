"""What a run is computed with. None of it changes what the run is asked for."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

# glibc's names for two of its limits, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 2**30


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The hardware, and how its time is traded for its memory."""

    device: str = "auto"
    """"auto", "cpu" or "cuda"."""

    devices: int = 1
    """Processes on each machine, each with a GPU or a part of the CPU of its own; they share each batch."""

    nodes: int = 1
    """Machines."""

    compile: bool = False
    """Whether `torch.compile` compiles the steps of flow: minutes before the first step, faster steps after."""

    checkpoint_activations: bool = False
    """Whether the backward pass computes each step of flow again instead of keeping what it needs of it."""

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}; it must be 'auto', 'cpu' or 'cuda'")
        for name in ("devices", "nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")

    @property
    def processes(self) -> int:
        """All together."""
        return self.devices * self.nodes


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed, instead of giving it back and having each page of it faulted in again.

    A training step frees and asks for the same megabytes over and over. Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
