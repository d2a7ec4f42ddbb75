"""Reads images from a data source, prepares and splits them, and makes batches that depend on seed and step alone."""

from glowserve_training.config import DataConfig
from glowserve_training.data.batches import StepLoader, evaluation_batches
from glowserve_training.data.images import (
    HeldOutImages,
    ImageData,
    load_held_out,
    load_images,
)
from glowserve_training.data.source_images import SourceImages, native_shape
from glowserve_training.data.sources import open_source

__all__ = [
    "DataConfig",
    "HeldOutImages",
    "ImageData",
    "SourceImages",
    "StepLoader",
    "evaluation_batches",
    "load_held_out",
    "load_images",
    "native_shape",
    "open_source",
]
