"""What an explanation costs beside a score, and what it shows: patches that do not belong into test images.

    python tests/benchmarks/bench_explain.py models/cifar out/cifar/held_out.npz --picture heat-maps.png

The second argument has the images that a training run held out. Three patches of a third of a side are put into test
images: noise, a part of another test image, and the image itself, blurred. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

import glowserve
from glowserve.heat_map import heat_map
from glowserve.images import UInt8Array, to_pil
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.explanation import Explainer
from glowserve.runtime.randomness import dequantization_noise
from glowserve.runtime.repository import EXPLAIN, FORWARD, newest_bundle

_BATCHES, _RUNS, _IMAGES, _PICTURES = (1, 8, 32), 15, 200, 2


def main() -> None:
    """Prints the costs and what patches do, and draws some."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("held_out", type=Path, help="held_out.npz of the training run")
    parser.add_argument("--picture", type=Path, help="a PNG to write")
    args = parser.parse_args()
    bundle = newest_bundle(args.bundle)
    engine = Engine(bundle, RuntimeConfig(device="cpu", threads=1))
    with np.load(args.held_out) as file:
        images = file["test"][:_IMAGES]
    began = time.perf_counter()
    Explainer(bundle, engine).open()
    sizes = {file.name: file.size / 2**20 for file in bundle.manifest.files}
    print(f"{FORWARD} {sizes[FORWARD]:.2f} MiB, {EXPLAIN} {sizes[EXPLAIN]:.2f} MiB")
    print(f"opened in {1e3 * (time.perf_counter() - began):.0f} ms")
    _print_costs(engine, images)
    changed = _patched(images)
    with glowserve.open(args.bundle, device="cpu") as client:
        maps = {name: client.explain(changed[name]).deviations for name in changed}
    _print_deviations(maps)
    if args.picture:
        _draw(changed, maps).save(args.picture)


def _print_costs(engine: Engine, images: UInt8Array) -> None:
    """Milliseconds of runs that take turns, the median."""
    print("\nbatch    score   explanation   ratio")
    for n in _BATCHES:
        batch = images[:n]
        noise = dequantization_noise(0, batch)
        seconds: dict[str, list[float]] = {"forward": [], "explain": []}
        for _ in range(_RUNS):
            for name, times in seconds.items():
                run: Callable[..., object] = getattr(engine, name)
                began = time.perf_counter()
                run(batch, noise)
                times.append(time.perf_counter() - began)
        forward, explain = (1e3 * statistics.median(times) for times in seconds.values())
        print(f"{n:5} {forward:5.1f} ms {explain:10.1f} ms {explain / forward:7.2f}")


def _box(size: int) -> tuple[slice, slice, slice]:
    """A patch of a third of a side, right of and below the middle."""
    place = slice(size // 2, size // 2 + size // 3)
    return slice(None), place, place


def _patched(images: UInt8Array) -> dict[str, UInt8Array]:
    box = _box(images.shape[1])
    changed = {
        name: images.copy() for name in ("as they are", "noise", "another image's part", "blurred patch")
    }
    changed["noise"][box] = np.random.default_rng(0).integers(0, 256, images[box].shape, np.uint8)
    changed["another image's part"][box] = np.roll(images, 1, axis=0)[box]
    for image, blurred in zip(images, changed["blurred patch"], strict=True):
        soft = np.asarray(to_pil(image).filter(ImageFilter.GaussianBlur(2)))
        blurred[box[1:]] = soft.reshape(image.shape)[box[1:]]
    return changed


def _print_deviations(maps: dict[str, npt.NDArray[np.float32]]) -> None:
    """The median deviation, of all images, in the patch and elsewhere: a few of those of noise are enormous."""
    box = _box(maps["as they are"].shape[1])
    elsewhere = np.ones(maps["as they are"].shape, bool)
    elsewhere[box] = False
    print("\nmedian deviation          in the patch   elsewhere")
    for name, deviations in maps.items():
        print(f"{name:24} {np.median(deviations[box]):+13.2f} {np.median(deviations[elsewhere]):+11.2f}")


def _draw(changed: dict[str, UInt8Array], maps: dict[str, npt.NDArray[np.float32]]) -> Image.Image:
    """A row for each image, a column for each change."""
    drawn = [
        [np.asarray(heat_map(changed[name][i], maps[name][i])) for name in changed] for i in range(_PICTURES)
    ]
    return Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in drawn]))


if __name__ == "__main__":
    main()
