"""Short names for configurations, and for the contents of loaded images."""

from __future__ import annotations

from typing import Any

import numpy as np
from glowserve_training.data import DataConfig, ImageData, SourceImages, survey_images
from glowserve_training.data.hugging_face import datasets
from PIL import Image

from glowserve.images import UInt8Array


def config(data: object, *, size: int = 8, channels: int = 1, **changes: Any) -> DataConfig:
    return DataConfig(data=str(data), image_size=size, channels=channels, **changes)


def native_shape(images: SourceImages) -> tuple[int, int]:
    """The side and the channels that a model of these images gets."""
    found = survey_images(images)
    return found.side, found.channels


def sizes(images: ImageData) -> tuple[int, int, int, int]:
    """Of train, validation, calibration and test."""
    return len(images.train), len(images.validation), len(images.calibration), len(images.test)


def contents(images: UInt8Array) -> set[bytes]:
    return {image.tobytes() for image in images}


def numbers(images: ImageData) -> dict[str, list[int]]:
    """The numbers of `numbered` images, by split."""
    names = ("train", "validation", "calibration", "test")
    return {name: getattr(images, name)[:, 0, 0, 0].tolist() for name in names}


def rows(n: int, rng: np.random.Generator, column: str = "image") -> datasets.Dataset:
    """A dataset of images of noise."""
    images = [Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)) for _ in range(n)]
    return datasets.Dataset.from_dict(
        {"label": list(range(n)), column: images},
        features=datasets.Features({"label": datasets.Value("int64"), column: datasets.Image()}),
    )
