"""Fixtures of the tests of data sources: no network, and folders of generated images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from glowserve_training.data.hugging_face import datasets
from PIL import Image

SaveImages = Callable[..., None]


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks the Hugging Face hub, and uses a fresh cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def save_images(rng: np.random.Generator) -> SaveImages:
    """Writes images of noise to a folder, `save_images(folder, 60, size=(10, 12))`: 0.png and so on."""

    def save(folder: Path, n: int, *, size: tuple[int, int] = (10, 12), suffix: str = "png") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.{suffix}")

    return save


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """A folder of 60 grey images of 8x8 pixels, whose pixels have the image's number as value."""
    (tmp_path / "all").mkdir()
    for i in range(60):
        Image.new("L", (8, 8), i).save(tmp_path / "all" / f"{i:02d}.png")
    return tmp_path / "all"
