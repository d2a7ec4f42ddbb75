"""Sizes of models, and how they are trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from training.config import RunConfig
from training.data import DataConfig, native_shape, open_source
from training.model import GlowConfig

T = TypeVar("T")

# Photographs are brought down to this unless asked otherwise.
_LARGEST_DEFAULT_SIZE = 64


@dataclass(frozen=True)
class _Size:
    """A model's size, and a training that suits it."""

    levels: int
    steps_per_level: int
    width: int
    steps: int
    batch_size: int
    learning_rate: float


# For images of up to so many pixels a side, what two CPU cores can train.
_SMALL = {
    16: _Size(levels=2, steps_per_level=12, width=64, steps=1500, batch_size=32, learning_rate=2e-3),
    32: _Size(levels=3, steps_per_level=8, width=128, steps=6000, batch_size=32, learning_rate=1e-3),
    64: _Size(levels=4, steps_per_level=8, width=128, steps=6000, batch_size=16, learning_rate=1e-3),
}
# Kingma and Dhariwal's for CIFAR-10 (appendix C), for days on a GPU.
_PAPER = _Size(levels=3, steps_per_level=32, width=512, steps=200_000, batch_size=64, learning_rate=1e-3)
SIZES = ("small", "paper")


def run_config(
    data: str,
    *,
    size: str = "small",
    image_size: int | None = None,
    channels: int | None = None,
    n_bits: int | None = None,
    levels: int | None = None,
    steps_per_level: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    split_seed: int = 0,
    coupling: str = "affine",
    parametrization: str = "lu",
    coupling_actnorm: bool = False,
    **training: Any,
) -> RunConfig:
    """A whole configuration from a data source and as little else as the caller cares to say.

    What is left out follows from the first picture of the source: its shorter side (up to 64 pixels), whether it
    is grey, and the size of model for such images.

    Args:
        data: see `DataConfig`.
        size: "small", what two CPU cores can train, or "paper", that of Kingma and Dhariwal (2018) for CIFAR-10.
        image_size: see `GlowConfig`, as for all up to `width`.
        channels: likewise.
        n_bits: likewise; 4 for "digits", which have no more, else 8 if left out.
        levels: likewise.
        steps_per_level: likewise.
        width: likewise.
        steps: see `RunConfig`, as for the next two.
        batch_size: likewise.
        learning_rate: likewise.
        split_seed: see `DataConfig`.
        coupling: see `GlowConfig`.
        parametrization: likewise.
        coupling_actnorm: likewise.
        **training: the remaining fields of `RunConfig`.

    Raises:
        DataError: the source cannot be read.
        ValueError: a value is out of range.
    """
    if size not in SIZES:
        raise ValueError(f"size is {size!r}; it must be one of {', '.join(SIZES)}")
    if data != "digits" and Path(data).exists():
        data = str(Path(data).absolute())  # an export may be asked for elsewhere
    if image_size is None or channels is None:
        side, native_channels = native_shape(open_source(data)["train"])
        image_size = _given(image_size, _default_size(side))
        channels = _given(channels, native_channels)
    preset = _PAPER if size == "paper" else _small(image_size)
    steps = _given(steps, preset.steps)
    return RunConfig(
        model=GlowConfig(
            image_size=image_size,
            channels=channels,
            n_bits=_given(n_bits, 4 if data == "digits" else 8),
            levels=_given(levels, min(preset.levels, _halvings(image_size))),
            steps_per_level=_given(steps_per_level, preset.steps_per_level),
            width=_given(width, preset.width),
            coupling=coupling,
            parametrization=parametrization,
            coupling_actnorm=coupling_actnorm,
        ),
        data=DataConfig(data=data, image_size=image_size, channels=channels, split_seed=split_seed),
        steps=steps,
        batch_size=_given(batch_size, preset.batch_size),
        learning_rate=_given(learning_rate, preset.learning_rate),
        warmup_steps=max(1, min(100, steps // 10)),
        **training,
    )


def _given(value: T | None, otherwise: T) -> T:
    return otherwise if value is None else value


def _small(image_size: int) -> _Size:
    return next((size for limit, size in _SMALL.items() if image_size <= limit), _SMALL[max(_SMALL)])


def _default_size(side: int) -> int:
    """The side, rounded down to a multiple of 4, and at most 64."""
    return min(_LARGEST_DEFAULT_SIZE, max(4, side - side % 4))


def _halvings(size: int) -> int:
    """How often a size can be halved."""
    return max(1, (size & -size).bit_length() - 1)
