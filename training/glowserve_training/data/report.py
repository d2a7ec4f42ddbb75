"""What training says of its data: how many images, of which shape and colour, how split, and what was left out."""

from __future__ import annotations

from collections.abc import Iterator

from glowserve.output import printable
from glowserve_training.config import DataConfig
from glowserve_training.data.sources import Source
from glowserve_training.data.survey import survey_images


def describe_source(source: Source, config: DataConfig) -> Iterator[str]:
    """Lines of text about a source, and about the images of a model that is trained on it.

    Raises:
        DataError: none of the images that are looked at can be read.
    """
    left_out = f"; left out: {source.left_out}" if source.left_out else ""
    yield f"data: {sum(map(len, source.values()))} images in {printable(config.data)}{left_out}"
    found, size = survey_images(source["train"]), config.image_size
    colour = "grey" if config.channels == 1 else "colour"
    yield f"images: {found}; the model gets {size} x {size} in {colour}"
    yield from (f"warning: {remark}" for remark in found.remarks(size, config.channels))


def describe_splits(source: Source, config: DataConfig, train: int, validation: int, test: int) -> str:
    """A line of text about the splits, with the number of images in each."""
    parts = [f"{train} to train on"]
    drawn = []
    for name, images in (("validation", validation), ("test", test)):
        parts.append(f"{images} for {name}")
        if name not in source:
            drawn.append(name)
    how = f"{' and '.join(drawn)} drawn at random, not stratified" if drawn else "the data's own splits"
    return f"split: {', '.join(parts)}; {how} (split seed {config.split_seed})"
