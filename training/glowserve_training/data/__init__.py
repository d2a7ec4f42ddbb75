"""Reads images from a data source, prepares and splits them, and makes batches that depend on seed and step alone."""

from glowserve_training.config import DataConfig
from glowserve_training.data.batches import StepLoader, evaluation_batches
from glowserve_training.data.contrast import black_or_white
from glowserve_training.data.held_out import (
    MOST_BYTES,
    HeldOutRecord,
    KnownImage,
    find_held_out,
    load_held_out,
    load_unseen,
    read_held_out,
    write_held_out,
)
from glowserve_training.data.images import HeldOutImages, ImageData, load_images
from glowserve_training.data.sets import ImageSet, load_set
from glowserve_training.data.source_images import SourceImages
from glowserve_training.data.sources import Source, open_source
from glowserve_training.data.splits import choose_splits
from glowserve_training.data.survey import survey_images

__all__ = [
    "MOST_BYTES",
    "DataConfig",
    "HeldOutImages",
    "HeldOutRecord",
    "ImageData",
    "ImageSet",
    "KnownImage",
    "Source",
    "SourceImages",
    "StepLoader",
    "black_or_white",
    "choose_splits",
    "evaluation_batches",
    "find_held_out",
    "load_held_out",
    "load_images",
    "load_set",
    "load_unseen",
    "open_source",
    "read_held_out",
    "survey_images",
    "write_held_out",
]
