"""Settings of the runtime: the device with its threads and memory, and the limits of one request."""

from __future__ import annotations

from dataclasses import dataclass

from glowserve.images import MAX_PIXELS
from glowserve.runtime.errors import DeviceError

DEVICES = ("auto", "cpu", "cuda", "tensorrt")


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """How the graphs of a bundle run.

    Raises:
        DeviceError: the device is not one of DEVICES.
    """

    device: str = "auto"
    """"cpu", "cuda", "tensorrt", or "auto": CUDA if it works and the bundle is not int8, else the CPU."""

    threads: int = 0
    """CPU threads inside one run; 0 for one per core that this process may use."""

    wide_threads: int = 0
    """CPU threads inside a run that is wide; 0: no run is. Each graph takes its memory a second time for such runs."""

    gpu_memory_mib: int = 0
    """The GPU memory that each graph may use, in MiB; 0 for no limit."""

    batch_sizes: tuple[int, ...] = ()
    """Batch sizes, ascending, for which a GPU gets buffers. Batches of other sizes run, too."""

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise DeviceError(f"device is {self.device!r}; it must be one of {', '.join(DEVICES)}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one request, and of one run of a graph."""

    max_images: int = 256
    """The most images in a request, latents in a request, and steps of an interpolation."""

    max_samples: int = 100_000
    """The most samples of a request."""

    max_pixels: int = MAX_PIXELS
    """The most pixels of all pictures in a request together."""

    max_batch_size: int = 32
    """The most images in one run of a graph."""


def bucket_sizes(max_batch_size: int) -> tuple[int, ...]:
    """The sizes that batches are padded to on a GPU, where each size costs memory: powers of two, and the largest."""
    return (*(2**i for i in range((max_batch_size - 1).bit_length())), max_batch_size)
