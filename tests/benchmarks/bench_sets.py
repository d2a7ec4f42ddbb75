"""How often ScoreSet finds a slight change in sets of 50 images, and how often it raises a false alarm.

    python tests/benchmarks/bench_sets.py models/cifar data/cifar10-jpeg/test.parquet

The second argument has images that nothing was trained on, fitted to or calibrated on: a Parquet file of pictures, or
held_out.npz of a training run, of which the test images are taken. An alarm for a set without a change is false. Beside
the test of a set stands the best that p-values of single images can do: the smallest of 50, times 50 (Bonferroni). Sets
have no image in common as long as there are enough.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter

from glowserve.cli.picture_tables import PictureTable
from glowserve.images import UInt8Array, to_pil
from glowserve.pictures import Pictures
from glowserve.runtime.calibration import open_scorer
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.randomness import DEFAULT_SEED, dequantization_noise
from glowserve.runtime.repository import newest_bundle
from glowserve.scores.parts import Parts, concatenated
from glowserve.scores.sets import SetTest

Float64Array = npt.NDArray[np.float64]
Change = Callable[[Image.Image], Image.Image]

_BATCH, _RATE, _SEED = 32, 0.05, 0


def main() -> None:
    """Prints a line for each change, the first being none."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path, help="a .parquet file of pictures, or held_out.npz")
    parser.add_argument("--size", type=int, default=50, help="images of a set (default: 50)")
    parser.add_argument("--sets", type=int, default=200, help="good sets (default: 200)")
    parser.add_argument("--changed", type=int, default=40, help="sets with each change (default: 40)")
    args = parser.parse_args()
    _print_costs()
    measure = _Measure(args.bundle)
    images = measure.images(args.images)
    print(f"{len(images)} images, {len(measure.calibration)} calibration images, sets of {args.size}\n")
    print(f"{'':16}{'sets with':>20}{'of the set:':>22}{'smallest of':>22}{'images with':>14}")
    print(f"{'':16}{'p <= 0.05':>10}{'p <= 0.01':>10}{'median p':>22}{'50: p <= 0.05':>22}{'p <= 0.01':>14}")
    for name, change in CHANGES.items():
        parts = measure.parts(_changed(images, change))
        features = parts.features(measure.dimensions)
        count = args.sets if change is _unchanged else args.changed
        rows = _sets(len(images), args.size, count)
        found = np.array([measure.p_value(features[each]) for each in rows])
        alone = measure.single_p_values(parts)
        smallest = np.array([min(1.0, args.size * float(alone[each].min())) for each in rows])
        shares = [_percent(values) for values in (found <= _RATE, found <= 0.01)]
        line = f"{name:16}{shares[0]:>10}{shares[1]:>10}{np.median(found):>22.4f}{_percent(smallest <= _RATE):>22}"
        print(f"{line}{_percent(alone <= 0.01):>14}", flush=True)
        if change is _unchanged:
            drawn = _with_new_calibrations(measure, features, args.size, count)
            print(_alarms("false alarms at 5 %", found))
            print(_alarms("false alarms at 5 %, with new calibration images drawn for each set", drawn))


def _print_costs() -> None:
    """The processor time of the exchanges of sets, of random features."""
    rng = np.random.default_rng(_SEED)
    for size, calibration in ((50, 1000), (100_000, 4000)):
        fitting, images, reference = (rng.normal(size=(n, 3)) for n in (1000, size, calibration))
        began = time.thread_time()
        test = SetTest(images, reference, fitting)
        while not test.run():
            pass
        print(f"{size} beside {calibration} calibration images: {time.thread_time() - began:.2f} s")
    print()


def _alarms(what: str, p_values: Float64Array) -> str:
    low, high = _binomial(_RATE, len(p_values))
    return f"  {int((p_values <= _RATE).sum())} of {len(p_values)} {what}; 95 of 100 times {low} to {high}"


def _with_new_calibrations(measure: _Measure, features: Float64Array, size: int, count: int) -> Float64Array:
    """p-values of good sets, whose calibration images are drawn for each set from them and the good images."""
    pile, n = np.concatenate([features, measure.calibration]), len(measure.calibration)
    rng, found = np.random.default_rng(_SEED), list[float]()
    for _ in range(count):
        pile = rng.permutation(pile)
        found.append(measure.p_value(pile[:size], pile[size : size + n]))
    return np.array(found)


class _Measure:
    """Computes features and p-values with a bundle."""

    def __init__(self, path: Path) -> None:
        bundle = self._bundle = newest_bundle(path)
        self._engine = Engine(bundle, RuntimeConfig(device="cpu", threads=1))
        self._scorer = open_scorer(bundle)
        self.dimensions = bundle.manifest.image.latent_size
        calibration = self._scorer.calibration
        assert calibration is not None
        self.calibration = calibration.images.features(self.dimensions)
        self._fitting = calibration.fitting.features(self.dimensions)

    def images(self, path: Path) -> UInt8Array:
        """The images of a file, uint8 [N, H, W, C]."""
        if path.suffix == ".npz":
            with np.load(path) as file:
                images: UInt8Array = file["test"]
                return images
        table, bundle = PictureTable(path), self._bundle
        files = [table.read(row) for row in range(len(table))]
        return np.concatenate([Pictures([file], bundle.shape, bundle.preparation).decode() for file in files])

    def parts(self, images: UInt8Array) -> Parts:
        """The parts of images [N, H, W, C]."""
        return concatenated([self._batch(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)])

    def _batch(self, images: UInt8Array) -> Parts:
        forward = self._engine.forward(images, dequantization_noise(DEFAULT_SEED, images))
        return self._scorer.parts(forward, images)

    def p_value(self, features: Float64Array, calibration: Float64Array | None = None) -> float:
        """That of a set; other calibration images may stand in for the bundle's."""
        test = SetTest(features, self.calibration if calibration is None else calibration, self._fitting)
        while not test.run():
            pass
        return test.p_value

    def single_p_values(self, parts: Parts) -> Float64Array:
        """Those of the images by themselves, [N]."""
        return self._scorer.p_values(parts)


def _unchanged(picture: Image.Image) -> Image.Image:
    return picture


def _changed(images: UInt8Array, change: Change) -> UInt8Array:
    return np.stack([np.asarray(change(to_pil(image))).reshape(image.shape) for image in images])


def _noisy(picture: Image.Image) -> Image.Image:
    pixels = np.asarray(picture)
    noise = np.random.default_rng(int(pixels.sum())).normal(0, 2, pixels.shape)
    return Image.fromarray(np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8))


def _jpeg(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return Image.open(file)


CHANGES: Mapping[str, Change] = {
    "good": _unchanged,
    "blur 0.5": lambda picture: picture.filter(ImageFilter.GaussianBlur(0.5)),
    "blur 0.3": lambda picture: picture.filter(ImageFilter.GaussianBlur(0.3)),
    "noise 2": _noisy,
    "JPEG 90": _jpeg,
    "contrast 0.9": lambda picture: ImageEnhance.Contrast(picture).enhance(0.9),
    "contrast 1.1": lambda picture: ImageEnhance.Contrast(picture).enhance(1.1),
    "brightness 0.9": lambda picture: ImageEnhance.Brightness(picture).enhance(0.9),
    "sharpness 1.2": lambda picture: ImageEnhance.Sharpness(picture).enhance(1.2),
    "rotated by 5": lambda picture: picture.rotate(5, Image.Resampling.BILINEAR),
    "upside down": lambda picture: picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
}


def _sets(images: int, size: int, count: int) -> list[npt.NDArray[np.int64]]:
    """The rows of so many sets: as many without a common image as there are, then of another order of the images."""
    rng, found = np.random.default_rng(_SEED), list[npt.NDArray[np.int64]]()
    while len(found) < count:
        found += list(rng.permutation(images)[: images // size * size].reshape(-1, size))
    return found[:count]


def _percent(hits: npt.NDArray[np.bool_]) -> str:
    return f"{100 * hits.mean():.1f} %"


def _binomial(rate: float, n: int) -> tuple[int, int]:
    """The counts between which 95 of 100 draws of a binomial distribution lie."""
    draws = np.random.default_rng(_SEED).binomial(n, rate, 1_000_000)
    low, high = np.quantile(draws, [0.025, 0.975])
    return int(low), int(high)


if __name__ == "__main__":
    main()
