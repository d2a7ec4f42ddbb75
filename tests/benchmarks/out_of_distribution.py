"""Writes folders of images that do not belong to a model's data, for `glowserve evaluate BUNDLE --against`.

    python tests/benchmarks/out_of_distribution.py models/cifar out/sets --digits mnist.npz --font NotoColorEmoji.ttf

Most are the model's own test images, changed. Digits in colour come from an .npz file with an array "images" of grey
images, and emoji from the font of Debian's package fonts-noto-color-emoji. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
from emoji import write_emoji
from glowserve_export.corruptions import corruptions
from glowserve_export.evaluation import EvaluatedBundle, training_data
from glowserve_export.held_out import held_out_of_bundle
from glowserve_training.data import DataConfig, load_set

from glowserve.images import UInt8Array, to_pil
from glowserve.runtime.repository import newest_bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path, metavar="REPOSITORY/MODEL")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", help="data to take test images from (default: the training data)")
    parser.add_argument("--images", type=int, default=1000, help="of each set, at most (default: 1,000)")
    parser.add_argument("--digits", type=Path, help="an .npz file of grey images, to be coloured")
    parser.add_argument("--font", type=Path, help="NotoColorEmoji.ttf")
    args = parser.parse_args()
    if args.folder.exists():
        parser.error(f"{args.folder} exists; remove it, or give another folder")
    bundle = newest_bundle(args.bundle)
    model = EvaluatedBundle(bundle, device="cpu")
    _, held_out = held_out_of_bundle(bundle, model, args.data, partial(print, file=sys.stderr))
    size = held_out.test.shape[1]
    for name, images in corruptions(held_out.test[: args.images]):
        _write(args.folder / name, images)
    if args.digits:
        shape = DataConfig(
            data=str(args.digits), image_size=size, channels=1, preparation=training_data(bundle).preparation
        )
        _write(args.folder / "coloured-digits", coloured(load_set(shape, args.images).images))
    if args.font:
        write_emoji(args.font, args.folder / "emoji", size)
    print(f"glowserve evaluate {args.bundle} --against {args.folder}/*")


def coloured(images: UInt8Array) -> UInt8Array:
    """Draws grey images [N, H, W, 1] in one random colour on another, [N, H, W, 3]."""
    rng = np.random.default_rng(0)
    paper, ink = rng.integers(0, 256, (2, len(images), 1, 1, 3))
    return np.rint(paper + (ink - paper) * (images / 255)).astype(np.uint8)


def _write(folder: Path, images: UInt8Array) -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        to_pil(np.ascontiguousarray(image)).save(folder / f"{i:04}.png")


if __name__ == "__main__":
    main()
