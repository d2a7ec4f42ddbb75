"""What training says of its data: how many images, of which shape and colour, how split, and what was left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from glowserve.output import printable
from glowserve_training.config import DataConfig
from glowserve_training.data.sources import Source
from glowserve_training.data.survey import survey_images

if TYPE_CHECKING:
    from glowserve_training.data.images import HeldOutImages


_COLOURS = {1: "grey", 2: "grey with alpha", 3: "colour", 4: "colour with alpha"}


def describe_source(source: Source, config: DataConfig) -> Iterator[str]:
    """Lines of text about a source, and about the images of a model that is trained on it.

    Raises:
        DataError: none of the images that are looked at can be read.
    """
    left_out = f"; left out: {source.left_out}" if source.left_out else ""
    yield f"data: {sum(map(len, source.values()))} images in {printable(config.data)}{left_out}"
    found, size = survey_images(source["train"]), config.image_size
    yield f"images: {found}; the model gets {size} in {_COLOURS[config.channels]}"
    yield from (f"warning: {remark}" for remark in found.remarks(config))


def describe_splits(source: Source, config: DataConfig, train: int, held_out: HeldOutImages) -> str:
    """A line of text about the splits, with the number of images in each."""
    sizes = {
        "validation": len(held_out.validation),
        "calibration": len(held_out.calibration),
        "test": len(held_out.test),
    }
    parts = [f"{train} to train on", *(f"{images} for {name}" for name, images in sizes.items() if images)]
    *others, last = [name for name in sizes if sizes[name] and _own_split(name) not in source] or [""]
    drawn = " and ".join(filter(None, (", ".join(others), last)))
    how = f"{drawn} drawn at random, not stratified" if drawn else "the data's own splits"
    return f"split: {', '.join(parts)}; {how} (split seed {config.split_seed})"


def _own_split(name: str) -> str:
    """The split of a source that these images come from if it has it."""
    return "validation" if name == "calibration" else name
