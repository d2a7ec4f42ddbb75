"""Sizes of models with training settings that suit them, and the defaults that follow from the images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glowserve.image_size import ImageSize
from glowserve.images import Preparation
from glowserve_training.config import DataConfig, GlowConfig, RunConfig
from glowserve_training.schedule import default_patience

if TYPE_CHECKING:
    from glowserve_training.data.splits import Split

# Larger images are scaled down to this unless the user says otherwise.
_LARGEST_DEFAULT_IMAGE_SIZE = 64


@dataclass(frozen=True)
class Preset:
    """A model's size, and a training that suits it. The fields are those of `GlowConfig` and `RunConfig`."""

    levels: int
    steps_per_level: int
    width: int
    steps: int
    batch_size: int
    learning_rate: float
    coupling: str = "affine"


# By whether many values are exactly black or white, as in drawings and scans. There the density has peaks at both ends,
# which logits spread, and pixel couplings and learned noise pay. In photographs logits do harm, and the others do not
# pay for their time. docs/training.md has the measurements.
_BLACK_OR_WHITE_SHARE = 0.25
_DRAWING: dict[str, Any] = {"preprocessing": "logit", "checkerboards": 4, "dequantization": "variational"}
_PHOTOGRAPH: dict[str, Any] = {"preprocessing": "centre", "checkerboards": 0, "dequantization": "uniform"}
_LIKE_THE_PAPER: dict[str, Any] = {**_PHOTOGRAPH, "coupling_scale": "sigmoid", "parametrization": "lu"}

# By the side of the largest image that is square; two CPU cores can train these.
_SMALL = {
    16: Preset(levels=2, steps_per_level=12, width=64, steps=1500, batch_size=32, learning_rate=4e-3),
    32: Preset(levels=3, steps_per_level=8, width=128, steps=6000, batch_size=32, learning_rate=4e-3),
    64: Preset(levels=4, steps_per_level=8, width=128, steps=6000, batch_size=16, learning_rate=1e-3),
}
# Drawings of that size gain more by pixel couplings and splines than by steps of flow and width.
_SMALL_DRAWINGS = _SMALL | {
    32: replace(_SMALL[32], steps_per_level=4, width=64, steps=3100, coupling="spline")
}
# Kingma and Dhariwal (2018), appendix C, for CIFAR-10: days on a GPU.
_PAPER = Preset(levels=3, steps_per_level=32, width=512, steps=200_000, batch_size=64, learning_rate=1e-3)
DEFAULT_SIZE = "small"
SIZES = {
    DEFAULT_SIZE: "for two CPU cores",
    "paper": f"K={_PAPER.steps_per_level} L={_PAPER.levels} width={_PAPER.width}, for a GPU",
}
"""Names of the sizes, and what each is for."""

DERIVED_DEFAULTS = {
    "image_size": f"a square with the median of the images' shorter sides, at most {_LARGEST_DEFAULT_IMAGE_SIZE}",
    "channels": "1 if nine in ten images are grey, else 3",
    "n_bits": f"{GlowConfig.n_bits}; 4 for 'digits'",
    **{
        name: f"{_DRAWING[name]} if {_BLACK_OR_WHITE_SHARE:.0%} of the values are black or white, else {value}"
        for name, value in _PHOTOGRAPH.items()
    },
    "patience": "half of the run's validations",
    **dict.fromkeys((field.name for field in fields(Preset)), "by image size"),
    "coupling": f"spline if {_BLACK_OR_WHITE_SHARE:.0%} of the values are black or white and image_size is 17 to 32, "
    "else affine",
}
"""What `run_config` takes for a field that is not given, where that is not the dataclass's default."""


def run_config(
    data: str,
    *,
    size: str = DEFAULT_SIZE,
    split_seed: int = DataConfig.split_seed,
    conditional: bool = False,
    label_column: str | None = None,
    **given: Any,
) -> RunConfig:
    """Makes a complete configuration from a data source and any fields that the caller wants to set.

    The other fields follow from a look at the source's training images, as `DERIVED_DEFAULTS` says.

    Args:
        data: see `DataConfig`.
        size: one of `SIZES`.
        split_seed: see `DataConfig`.
        conditional: whether the model is to have a prior for each class of the images' labels.
        label_column: the column of labels; None if the data has one.
        **given: fields of `GlowConfig`, `RunConfig` and `Preparation`; None for the default.

    Raises:
        DataError: the source cannot be read.
        ValueError: a value is out of range.
    """
    if size not in SIZES:
        raise ValueError(f"size is {size!r}; it must be one of {', '.join(SIZES)}")
    data = _absolute(data)
    given = {name: value for name, value in given.items() if value is not None}
    # The shape plays no part in which images are to train on.
    images = DataConfig(
        data=data,
        image_size=ImageSize(1, 1),
        channels=1,
        split_seed=split_seed,
        preparation=Preparation(**_taken(given, Preparation)),
    )
    if "image_size" not in given or "channels" not in given:
        given = _native_shape(images) | given
    size_of_images = ImageSize.of(given["image_size"])
    images = replace(images, image_size=size_of_images, channels=given["channels"])
    if conditional:
        images = _labelled(images, label_column)
        given["class_count"] = len(images.classes)
    elif label_column is not None:
        raise ValueError(
            f"label_column is {label_column!r}, and only a conditional model has classes: set conditional"
        )
    if size == "paper":
        preset, recipe = _PAPER, _LIKE_THE_PAPER
    elif _are_drawings(images, given):
        preset, recipe = _small(_SMALL_DRAWINGS, images.image_size), _DRAWING
    else:
        preset, recipe = _small(_SMALL, images.image_size), _PHOTOGRAPH
    values = {"n_bits": 4 if data == "digits" else GlowConfig.n_bits} | recipe | asdict(preset) | given
    if "levels" not in given:
        values["levels"] = min(preset.levels, max(1, size_of_images.halvings))
    model = GlowConfig(
        **{field.name: values.pop(field.name) for field in fields(GlowConfig) if field.name in values}
    )
    values.setdefault("warmup_steps", max(1, min(RunConfig.warmup_steps, values["steps"] // 10)))
    values.setdefault("patience", default_patience(values["steps"]))
    return RunConfig(model=model, data=images, size=size, **values)


def changed_config(config: RunConfig, **given: Any) -> RunConfig:
    """The configuration of a run with the fields that the caller gives, for example when the run is resumed.

    Defaults play no part: they may have changed since the run began.

    Args:
        config: the run's configuration.
        **given: as of `run_config`; None for what the configuration has.

    Raises:
        ValueError: a value is out of range.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if given.pop("conditional", bool(config.data.classes)) and not config.data.classes:
        raise ValueError("conditional is set, and the run has begun without classes; use another --out")
    if "data" in given:
        given["data"] = _absolute(given["data"])

    preparation = replace(config.data.preparation, **_taken(given, Preparation))
    # Both have the shape of the images.
    model, data = (
        {name: given[name] for name in _names(part) if name in given} for part in (GlowConfig, DataConfig)
    )
    rest = {name: value for name, value in given.items() if name not in model | data}
    data_config = replace(config.data, preparation=preparation, **data)
    return replace(config, model=replace(config.model, **model), data=data_config, **rest)


def _names(config: type[GlowConfig | DataConfig | Preparation]) -> list[str]:
    return [field.name for field in fields(config)]


def _taken(given: dict[str, Any], config: type[Preparation]) -> dict[str, Any]:
    """The fields of a configuration, taken out of those that are given."""
    return {name: given.pop(name) for name in _names(config) if name in given}


def _absolute(data: str) -> str:
    """The data by a path that holds in other folders, where an export may run; not that of a hub's dataset."""
    return str(Path(data).absolute()) if data != "digits" and Path(data).exists() else data


def _labelled(images: DataConfig, label_column: str | None) -> DataConfig:
    from glowserve_training.data.classes import find_label_column  # imports PyTorch

    column = find_label_column(images.data, label_column)
    return replace(images, label_column=column.name, classes=column.classes)


def _native_shape(images: DataConfig) -> dict[str, Any]:
    from glowserve_training.data import survey_images  # imports PyTorch

    found = survey_images(*_training_images(images))
    return {"image_size": _default_image_size(found.side), "channels": found.channels}


def _are_drawings(images: DataConfig, given: Mapping[str, Any]) -> bool:
    """Whether much of the images is black or white. If all that follows from that is given, only its kind counts."""
    if given.keys() >= _DRAWING.keys():
        return bool(given["preprocessing"] == _DRAWING["preprocessing"])
    from glowserve_training.data import black_or_white  # imports PyTorch

    return black_or_white(_training_images(images), images) >= _BLACK_OR_WHITE_SHARE


def _training_images(images: DataConfig) -> Split:
    """Nothing else may shape the model: scores are calibrated, and judged, on images that it knows nothing of."""
    from glowserve_training.data import choose_splits, open_source  # imports PyTorch

    return choose_splits(open_source(images.data), images)["train"]


def _small(presets: Mapping[int, Preset], size: ImageSize) -> Preset:
    fitting = (preset for side, preset in presets.items() if size.pixels <= side**2)
    return next(fitting, presets[max(presets)])


def _default_image_size(side: int) -> ImageSize:
    """A square with that side, rounded down to a multiple of 4 and limited."""
    return ImageSize.of(min(_LARGEST_DEFAULT_IMAGE_SIZE, max(4, side - side % 4)))
