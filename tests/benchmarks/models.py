"""The models of the benchmark of the service: trained for two steps on random images, as only their size matters."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
from running import OUT

from glowserve.images import UInt8Array

MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"image_size": 8, "channels": 1, "levels": 2, "steps_per_level": 12, "width": 64},
    "medium": {"image_size": 32, "channels": 3, "levels": 3, "steps_per_level": 16, "width": 256},
    "paper": {"image_size": 32, "channels": 3, "levels": 3, "steps_per_level": 32, "width": 512},
}
"""The size of the demo's model, one that the recipe for CIFAR-10 would use if it had more time, and the paper's for
CIFAR-10."""


def bundle(name: str) -> Path:
    """The VERSION folder of a model; trains and exports the model if it does not exist."""
    folder = OUT / "models" / name
    if not (folder / name / "1").exists():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(_export, (name, folder))
    return folder / name / "1"


def describe(name: str) -> str:
    """The size of a model, for a heading."""
    size = MODELS[name]
    shape = f"{size['image_size']}x{size['image_size']}x{size['channels']}"
    return f"{name}: {shape}, K={size['steps_per_level']} L={size['levels']} width={size['width']}"


def random_images(name: str, n: int) -> UInt8Array:
    """Random images of a model's shape, uint8 [N, H, W, C]."""
    size = MODELS[name]
    shape = (n, size["image_size"], size["image_size"], size["channels"])
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _export(name: str, folder: Path) -> None:
    from glowserve_export.bundle import export
    from glowserve_export.source import load_glowserve_checkpoint
    from glowserve_training.hardware import Hardware
    from glowserve_training.presets import run_config
    from glowserve_training.run import train

    folder.mkdir(parents=True, exist_ok=True)
    images = folder / "images.npz"
    np.savez(images, images=random_images(name, 400))
    config = run_config(str(images), **MODELS[name], steps=2, batch_size=16, learning_rate=1e-6)
    checkpoint = train(config, folder / "run", hardware=Hardware(device="cpu"))
    export(load_glowserve_checkpoint(checkpoint), folder / name)
