"""How a bundle is run: the device, its threads and memory, and how much one request may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from glowserve.runtime.errors import DeviceError

DEVICES = ("auto", "cpu", "cuda", "tensorrt")


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Where the graphs of a bundle run, and with what.

    Raises:
        DeviceError: there is no device of that name.
    """

    device: str = "auto"
    """"cpu", "cuda", "tensorrt", or "auto": CUDA if it works and the bundle is not int8, else the CPU."""

    threads: int = 0
    """CPU threads inside one run; 0 for one a core."""

    gpu_memory_mib: int = 0
    """Most memory that each of the two graphs may take of a GPU, in MiB; 0 for all there is."""

    batch_sizes: tuple[int, ...] = ()
    """Numbers of images, ascending, that a GPU has buffers for; batches of any size run."""

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise DeviceError(f"device is {self.device!r}; it must be one of {', '.join(DEVICES)}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one request may bring or ask for, and how many images run at a time."""

    max_images: int = 256
    """Most images that a request may bring, and most steps of an interpolation."""

    max_samples: int = 100_000
    """Most images that a request may ask to sample."""

    max_pixels: int = 32_000_000
    """Most pixels that a request's pictures may have together."""

    max_batch_size: int = 32
    """Most images in one run of a graph."""


def bucket_sizes(max_batch_size: int) -> tuple[int, ...]:
    """1, 2, 4, 8 and so on, and the most: sizes to pad batches to where every new size is paid for."""
    return (*(2**i for i in range((max_batch_size - 1).bit_length())), max_batch_size)
