"""The configuration of a training run: model, data and training. Imports no PyTorch, so that `--help` is instant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from glowserve.image_size import MAX_SIDE, MAX_VALUES, ImageSize
from glowserve.images import MODES, Preparation
from glowserve_training.option import option, require_at_least, require_choice, require_positive

PREPROCESSINGS = ("centre", "logit")
COUPLINGS = ("affine", "additive", "spline")
COUPLING_SCALES = ("tanh", "sigmoid")
PARAMETRIZATIONS = ("qlu", "lu", "orthogonal", "plain")
DEQUANTIZATIONS = ("uniform", "variational")
SCHEDULES = ("cosine", "constant")
PRECISIONS = ("32-true", "bf16-mixed")
SPLIT_VERSION = 2
"""The rule by which new runs split their images."""


@dataclass(frozen=True, kw_only=True)
class GlowConfig:
    """The architecture of a Glow; checkpoints store it.

    Raises:
        ValueError: a value is out of range; the message names the field and the allowed values.
    """

    image_size: ImageSize = option(
        "HEIGHTxWIDTH of the images in pixels, or one number for both; divisible by 2^levels"
    )
    channels: int = option("1 (grey), 3 (RGB), or 2 or 4: the same with alpha as data")
    n_bits: int = option("bits of each pixel value that the model sees, 1 to 8", 8)
    levels: int = option("levels L of the flow; each halves height and width", 3)
    steps_per_level: int = option("steps of flow K in each level", 8)
    width: int = option("hidden channels of the coupling networks", 128)
    preprocessing: str = option(
        "of pixel values; logit spreads those near black and white", "centre", choices=PREPROCESSINGS
    )
    checkerboards: int = option(
        "couplings with checkerboard masks, of single pixels, before the first level", 0
    )
    coupling: str = option(
        "coupling layers; spline: affine, and after it a rational-quadratic spline",
        "affine",
        choices=COUPLINGS,
    )
    coupling_scale: str = option(
        "of affine maps; tanh is bounded in both directions, and bounds the priors' too; sigmoid is the paper's",
        "tanh",
        choices=COUPLING_SCALES,
    )
    parametrization: str = option(
        "of the 1x1 convolutions; qlu bounds their condition number", "qlu", choices=PARAMETRIZATIONS
    )
    coupling_actnorm: bool = option(
        "actnorm instead of biases inside the coupling networks, as in the paper's code", True
    )
    dequantization: str = option("noise within each bin of pixel values", "uniform", choices=DEQUANTIZATIONS)
    pixel_width: int = 32
    """Hidden channels of the networks of checkerboard couplings and of variational dequantization, which run at the
    resolution of the image or half of it."""
    spline_bins: int = 8
    """Bins of the splines of couplings."""
    spline_interval: float = 3.0
    """B: the splines of couplings map [-B, B] to itself, and are the identity outside."""
    class_count: int = 0
    """Classes that the latents have a density each for; 0: the model is not conditional."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", ImageSize.of(self.image_size))
        if self.channels not in MODES:
            raise ValueError(
                f"channels is {self.channels}; it must be 1 (grey) or 3 (RGB), or 2 or 4 with alpha as data"
            )
        if not 1 <= self.n_bits <= 8:
            raise ValueError(f"n_bits is {self.n_bits}; it must lie in 1 to 8")
        require_at_least(1, levels=self.levels, steps_per_level=self.steps_per_level, width=self.width)
        require_at_least(1, pixel_width=self.pixel_width)
        require_at_least(0, checkerboards=self.checkerboards, class_count=self.class_count)
        require_at_least(2, spline_bins=self.spline_bins)
        require_positive(spline_interval=self.spline_interval)
        self._check_size()
        require_choice(PREPROCESSINGS, preprocessing=self.preprocessing)
        require_choice(COUPLINGS, coupling=self.coupling)
        require_choice(COUPLING_SCALES, coupling_scale=self.coupling_scale)
        require_choice(DEQUANTIZATIONS, dequantization=self.dequantization)
        require_choice(PARAMETRIZATIONS, parametrization=self.parametrization)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[H, W, C] of an image."""
        return self.image_size.height, self.image_size.width, self.channels

    @property
    def dimensions(self) -> int:
        """Values of an image, D = H * W * C."""
        return self.image_size.pixels * self.channels

    def _check_size(self) -> None:
        size, multiple = self.image_size, 2**self.levels
        if size.shorter < 1 or size.halvings < self.levels:
            nearest = " or ".join(map(str, size.nearest(multiple)))
            raise ValueError(
                f"image_size is {size}; {self.levels} levels halve height and width {self.levels} times, so each must "
                f"be a positive multiple of {multiple}: {nearest} would do (or use fewer levels)"
            )
        if size.longer > MAX_SIDE or self.dimensions > MAX_VALUES:
            raise ValueError(
                f"image_size is {size} with {self.channels} channels; an image may have at most {MAX_SIDE} rows, as "
                f"many columns, and {MAX_VALUES} values"
            )


def stored_model(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `GlowConfig` in a file. What is absent was fixed in the version that wrote it."""
    return {
        "preprocessing": "centre",
        "checkerboards": 0,
        "coupling_scale": "sigmoid",
        "pixel_width": values.get("width", GlowConfig.pixel_width),
    } | dict(values)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images come from and how they are prepared and split.

    Checkpoints store it, so that an export can load the same held-out images again.
    """

    data: str = option(
        "'digits', a folder of images, a .parquet or .npz file, or a dataset's name on the Hugging Face hub"
    )
    image_size: ImageSize
    """H and W of the prepared images, in pixels."""
    channels: int
    """A key of `glowserve.images.MODES`."""
    split_seed: int = option("seed that chooses the held-out images", 0)
    split_version: int = SPLIT_VERSION
    """Which rule splits the images, see `choose_splits`; 1 held out no calibration images."""
    preparation: Preparation = field(default_factory=Preparation)
    """How a source image is converted to `image_size` and `channels`."""
    label_column: str | None = None
    """The column of the images' labels, see `data.labelled`; None if no labels are read."""
    classes: tuple[str, ...] = ()
    """The names of the labels' classes, in the order of the model's."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", ImageSize.of(self.image_size))
        require_at_least(0, split_seed=self.split_seed)
        if self.split_version not in (1, SPLIT_VERSION):
            raise ValueError(f"split_version is {self.split_version}; it must be 1 or {SPLIT_VERSION}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[H, W, C] of the prepared images."""
        return self.image_size.height, self.image_size.width, self.channels


@dataclass(frozen=True, kw_only=True)
class Part:
    """Steps of a run over which the learning rate rises and falls once: its beginning, or an extension."""

    begin: int
    """Steps of the run before the part."""

    end: int
    """Steps of the run up to the end of the part, unless its patience runs out before."""

    patience: int
    """Validations without improvement after which the part ends; 0: never."""

    def __post_init__(self) -> None:
        require_at_least(0, begin=self.begin, patience=self.patience)
        if self.end <= self.begin:
            raise ValueError(f"end is {self.end}; it must be more than begin, {self.begin}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that determines the result of a run, except the hardware.

    Raises:
        ValueError: a value is out of range; the message names the field and the allowed values.
    """

    model: GlowConfig
    data: DataConfig
    steps: int = option("optimizer steps")
    batch_size: int = option("images in each step's batch")
    learning_rate: float = option("highest learning rate", 1e-3)
    warmup_steps: int = 100
    """Steps in which the learning rate rises linearly to `learning_rate`."""
    clip_gradient_norm: float = 50.0
    """Longer gradients are scaled down to this norm."""
    schedule: str = option(
        "of the learning rate after the warm-up; cosine falls to 0", "cosine", choices=SCHEDULES
    )
    weight_decay: float = option("decoupled weight decay (AdamW) of the coupling networks' convolutions", 0.0)
    average_decay: float = option(
        "decay of the exponential moving average (EMA) of the weights, which is the result; 0: the last weights",
        0.999,
    )
    precision: str = option(
        "of the coupling networks in training; inverted layers always use float32",
        "32-true",
        choices=PRECISIONS,
    )
    condition_limit: float = 1e4
    """Training rolls back when the condition number of a 1x1 convolution exceeds this."""
    max_rollbacks: int = 5
    """Rollbacks after which the next fault ends training."""
    patience: int = option("validations without improvement after which training ends; 0: never", 0)
    seed: int = option("seed of initialization, order of images, and noise", 0)
    size: str = "small"
    """The preset that the values come from where none were given, which determines nothing else; "": unknown."""
    extensions: tuple[Part, ...] = ()
    """What was added to the run after it had finished, see `RunDirectory.extended`."""

    def __post_init__(self) -> None:
        require_at_least(1, steps=self.steps, batch_size=self.batch_size, warmup_steps=self.warmup_steps)
        require_choice(SCHEDULES, schedule=self.schedule)
        require_choice(PRECISIONS, precision=self.precision)
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay is {self.average_decay}; it must lie in [0, 1)")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be 0 or a positive number")
        if not self.condition_limit > 1:
            raise ValueError(f"condition_limit is {self.condition_limit}; it must be greater than 1")
        if self.model.class_count != len(self.data.classes):
            raise ValueError(
                f"class_count is {self.model.class_count}, and the data has {len(self.data.classes)} classes; it must "
                "be their number"
            )
        require_at_least(0, max_rollbacks=self.max_rollbacks, patience=self.patience)
        for before, after in pairwise(self.parts):
            if not 0 < after.begin <= before.end:
                raise ValueError(
                    f"an extension begins at step {after.begin}; it must lie in 1 to {before.end}"
                )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must lie in 0 to 2^63 - 1")
        require_positive(learning_rate=self.learning_rate, clip_gradient_norm=self.clip_gradient_norm)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The run's first part and its extensions, one after the other."""
        return (Part(begin=0, end=self.steps, patience=self.patience), *self.extensions)

    @property
    def last_step(self) -> int:
        """The step with which the run ends, unless its patience runs out before."""
        return self.parts[-1].end
