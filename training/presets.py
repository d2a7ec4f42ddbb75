"""Sizes that train a good small model on a CPU, by image size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from training.config import RunConfig
from training.data import DataConfig, native_shape, open_source
from training.model import GlowConfig

T = TypeVar("T")

# Photographs are brought down to this unless asked otherwise.
_LARGEST_DEFAULT_SIZE = 64


@dataclass(frozen=True)
class _Preset:
    """For images of up to `image_size` pixels a side."""

    image_size: int
    levels: int
    steps_per_level: int
    width: int
    steps: int
    batch_size: int
    learning_rate: float


_PRESETS = (
    _Preset(16, levels=2, steps_per_level=12, width=64, steps=1500, batch_size=32, learning_rate=2e-3),
    _Preset(32, levels=3, steps_per_level=8, width=128, steps=6000, batch_size=32, learning_rate=1e-3),
    _Preset(64, levels=4, steps_per_level=8, width=128, steps=6000, batch_size=16, learning_rate=1e-3),
)


def run_config(
    data: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    n_bits: int | None = None,
    levels: int | None = None,
    steps_per_level: int | None = None,
    width: int | None = None,
    coupling: str = "affine",
    parametrization: str = "lu",
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    split_seed: int = 0,
) -> RunConfig:
    """A whole configuration from a data source and as little else as the caller cares to say.

    What is left out follows from the first picture of the source: its shorter side (up to 64 pixels), whether it
    is grey, and the preset for that size.

    Raises:
        DataError: the source cannot be read.
        ValueError: a value is out of range.
    """
    if data != "digits" and Path(data).exists():
        data = str(Path(data).absolute())  # an export may be asked for elsewhere
    if image_size is None or channels is None:
        side, native_channels = native_shape(open_source(data)["train"])
        image_size = _given(image_size, _default_size(side))
        channels = _given(channels, native_channels)
    preset = next((preset for preset in _PRESETS if image_size <= preset.image_size), _PRESETS[-1])
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
        ),
        data=DataConfig(data=data, image_size=image_size, channels=channels, split_seed=split_seed),
        steps=steps,
        batch_size=_given(batch_size, preset.batch_size),
        learning_rate=_given(learning_rate, preset.learning_rate),
        warmup_steps=max(1, min(100, steps // 10)),
        seed=seed,
    )


def _given(value: T | None, otherwise: T) -> T:
    return otherwise if value is None else value


def _default_size(side: int) -> int:
    """The side, rounded down to a multiple of 4, and at most 64."""
    return min(_LARGEST_DEFAULT_SIZE, max(4, side - side % 4))


def _halvings(size: int) -> int:
    """How often a size can be halved."""
    return max(1, (size & -size).bit_length() - 1)
