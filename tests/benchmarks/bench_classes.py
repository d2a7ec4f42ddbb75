"""What classes are worth: a conditional model beside an unconditional one, and beside a small classifier.

    python tests/benchmarks/bench_classes.py --data ../shared/data/mnist10k/mnist10k.npz --steps 600 --out out/classes

It trains both models with the recipe of the data and the same seed, unless their runs are there, and prints bits/dim of
both on the same test images, the share of them whose most probable class is right, that share for a convolutional
network of two layers that is trained on the same images, and the processor time that the graphs of both take. Rows of
samples of each class go to OUT/samples.png.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from glowserve_export.bundle import export
from glowserve_export.source import load_glowserve_checkpoint
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.data import ImageData, load_images
from glowserve_training.presets import run_config
from glowserve_training.run import train
from torch import nn

import glowserve
from glowserve.grid import grid
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.randomness import dequantization_noise
from glowserve.runtime.repository import Bundle, newest_bundle

_EPOCHS, _BATCH = 5, 64
_ROUNDS, _IMAGES = 20, 32
_SAMPLES = 10


def main() -> None:
    """Trains, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--label-column")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    given = {} if args.steps is None else {"steps": args.steps}
    config = run_config(args.data, conditional=True, label_column=args.label_column, **given)
    checkpoints = {
        "conditional": train(config, args.out / "conditional"),
        "unconditional": train(run_config(args.data, **given), args.out / "unconditional"),
    }
    images = load_images(config.data)
    print(f"{'model':<16}{'bits/dim':>10}{'accuracy':>10}")
    for name, checkpoint in checkpoints.items():
        metrics = load_checkpoint(checkpoint).training.metrics
        accuracy = f"{metrics['test_accuracy']:.1%}" if "test_accuracy" in metrics else "-"
        print(f"{name:<16}{metrics['test_bits_per_dim']:>10.3f}{accuracy:>10}")
    print(f"{'network':<16}{'':>10}{_accuracy_of_network(images, len(config.data.classes)):>10.1%}")
    bundles = {name: _exported(path, args.out / "models" / name) for name, path in checkpoints.items()}
    _print_speed(bundles, images)
    _draw_samples(bundles["conditional"], args.out / "samples.png")


def _accuracy_of_network(images: ImageData, classes: int) -> float:
    """The share of test images that a small convolutional network classifies rightly."""
    torch.manual_seed(0)
    assert images.train_labels is not None
    assert images.test_labels is not None
    channels = images.train.shape[3]
    network = nn.Sequential(
        *(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()),
        nn.Linear(512, classes),
    )
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    labels = torch.from_numpy(images.train_labels)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(labels)).split(_BATCH):
            loss = F.cross_entropy(network(_floats(images.train[rows.numpy()])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        found = network(_floats(images.test)).argmax(1).numpy()
    return float((found == images.test_labels).mean())


def _floats(images: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2) / 255


def _exported(checkpoint: Path, model: Path) -> Bundle:
    if model.is_dir():
        return newest_bundle(model)
    return export(load_glowserve_checkpoint(checkpoint), model, device="cpu")


def _print_speed(bundles: dict[str, Bundle], images: ImageData) -> None:
    """Processor time of a batch in each graph, the least of runs in turn: the machine may have other work."""
    batch = images.test[:_IMAGES]
    noise = dequantization_noise(0, batch)
    engines = {
        name: Engine(bundle, RuntimeConfig(device="cpu", threads=1)) for name, bundle in bundles.items()
    }
    latent = {name: engine.forward(batch, noise).latent for name, engine in engines.items()}
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(_ROUNDS):
        for name, engine in engines.items():
            for graph, run in (
                ("forward", lambda engine=engine: engine.forward(batch, noise)),
                ("reverse", lambda engine=engine, name=name: engine.reverse(latent[name])),
            ):
                began = time.thread_time()
                run()
                times.setdefault((name, graph), []).append(time.thread_time() - began)
    for (name, graph), seconds in times.items():
        size = next(file.size for file in bundles[name].manifest.files if file.name == f"{graph}.onnx")
        print(f"{name:<16}{graph:<10}{1000 * min(seconds):8.2f} ms for {_IMAGES} images, {size:,} bytes")


def _draw_samples(bundle: Bundle, path: Path) -> None:
    """A row of samples of each class."""
    with glowserve.open(bundle.path) as client:
        rows = [
            client.sample(_SAMPLES, class_name=name, seed=0, temperature=0.7).images
            for name in bundle.classes
        ]
    grid(np.concatenate(rows), _SAMPLES, scale=3).save(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
