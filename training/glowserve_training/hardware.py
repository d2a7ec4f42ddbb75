"""The hardware that a run uses, and how compute time is traded for memory. None of it is part of `RunConfig`."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from glowserve.cores import cores
from glowserve_training.option import option, require_at_least, require_choice

DEVICES = ("auto", "cpu", "cuda")
# glibc's names for two of its limits, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Devices, and the options that change speed and memory but not the model.

    Raises:
        ValueError: a value is out of range; the message names the field and the allowed values.
    """

    device: str = option("auto: a GPU if PyTorch finds one, else the CPU", "auto", choices=DEVICES)
    devices: int = option(
        "processes on each machine, each with its own GPU or share of the CPU; they share each batch", 1
    )
    nodes: int = option("machines", 1)
    compile: bool = option(
        "compile the steps of flow (torch.compile): minutes before the first step, then faster", False
    )
    checkpoint_activations: bool = option(
        "recompute each step of flow in the backward pass: far less memory for a third more time", False
    )

    def __post_init__(self) -> None:
        require_choice(DEVICES, device=self.device)
        require_at_least(1, devices=self.devices, nodes=self.nodes)

    @property
    def processes(self) -> int:
        """Processes on all machines together."""
        return self.devices * self.nodes


def use_allowed_cores() -> None:
    """Takes from PyTorch the threads for cores that this process may not use: it knows of no quota."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), cores()))


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of returning it to the system.

    A training step frees and allocates the same megabytes every time; returned pages would have to be faulted in
    again. Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
