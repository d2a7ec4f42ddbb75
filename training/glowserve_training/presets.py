"""Sizes of models, and how they are trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from glowserve_training.config import RunConfig
from glowserve_training.data import DataConfig, native_shape, open_source
from glowserve_training.model import GlowConfig

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
    16: _Size(levels=2, steps_per_level=12, width=64, steps=1500, batch_size=32, learning_rate=4e-3),
    32: _Size(levels=3, steps_per_level=8, width=128, steps=6000, batch_size=32, learning_rate=4e-3),
    64: _Size(levels=4, steps_per_level=8, width=128, steps=6000, batch_size=16, learning_rate=1e-3),
}
# Kingma and Dhariwal's for CIFAR-10 (appendix C), for days on a GPU.
_PAPER = _Size(levels=3, steps_per_level=32, width=512, steps=200_000, batch_size=64, learning_rate=1e-3)
SIZES = ("small", "paper")


def run_config(data: str, *, size: str = "small", split_seed: int = 0, **said: Any) -> RunConfig:
    """A whole configuration from a data source and as little else as the caller cares to say.

    What is left out follows from the first picture of the source: its shorter side (up to 64 pixels), whether it
    is grey, and the size of model for such images.

    Args:
        data: see `DataConfig`.
        size: "small", what two CPU cores can train, or "paper", that of Kingma and Dhariwal (2018) for CIFAR-10.
        split_seed: see `DataConfig`.
        **said: fields of `GlowConfig` and `RunConfig`; None is as good as left out.

    Raises:
        DataError: the source cannot be read.
        ValueError: a value is out of range.
    """
    if size not in SIZES:
        raise ValueError(f"size is {size!r}; it must be one of {', '.join(SIZES)}")
    if data != "digits" and Path(data).exists():
        data = str(Path(data).absolute())  # an export may be asked for elsewhere
    said = {name: value for name, value in said.items() if value is not None}
    if "image_size" not in said or "channels" not in said:
        side, channels = native_shape(open_source(data)["train"])
        said = {"image_size": _default_size(side), "channels": channels} | said
    image_size = said["image_size"]
    preset = _PAPER if size == "paper" else _small(image_size)
    values = {"n_bits": 4 if data == "digits" else 8} | asdict(preset) | said
    if "levels" not in said:
        values["levels"] = min(preset.levels, _halvings(image_size))
    model = {field.name: values.pop(field.name) for field in fields(GlowConfig) if field.name in values}
    values.setdefault("warmup_steps", max(1, min(100, values["steps"] // 10)))
    return RunConfig(
        model=GlowConfig(**model),
        data=DataConfig(data=data, image_size=image_size, channels=model["channels"], split_seed=split_seed),
        **values,
    )


def _small(image_size: int) -> _Size:
    return next((size for limit, size in _SMALL.items() if image_size <= limit), _SMALL[max(_SMALL)])


def _default_size(side: int) -> int:
    """The side, rounded down to a multiple of 4, and at most 64."""
    return min(_LARGEST_DEFAULT_SIZE, max(4, side - side % 4))


def _halvings(size: int) -> int:
    """How often a size can be halved."""
    return max(1, (size & -size).bit_length() - 1)
