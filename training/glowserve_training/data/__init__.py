"""Pictures from anywhere, prepared, split, and put into batches that depend on seed and step alone."""

from glowserve_training.data.batches import StepLoader, evaluation_batches
from glowserve_training.data.images import (
    DataConfig,
    HeldOutImages,
    ImageData,
    load_held_out,
    load_images,
)
from glowserve_training.data.sources import Pictures, native_shape, open_source

__all__ = [
    "DataConfig",
    "HeldOutImages",
    "ImageData",
    "Pictures",
    "StepLoader",
    "evaluation_batches",
    "load_held_out",
    "load_images",
    "native_shape",
    "open_source",
]
