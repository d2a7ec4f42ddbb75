"""`glowserve sample`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from glowserve.cli.failure import Failure
from glowserve.cli.target import add_target_arguments, target
from glowserve.images import grid, to_pil

# A grid is enlarged until it has about this many pixels a side.
_GRID_PIXELS = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    add_target_arguments(parser)
    parser.add_argument("--n", type=int, default=64, help="how many images; default: 64")
    parser.add_argument(
        "--out", type=Path, required=True, help="a .png file for a grid of all; or a folder, for a file each"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="below 1: more typical; default: 1")
    parser.add_argument("--seed", type=int, help="the same seed gives the same images; drawn if left out")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Draws images and saves them."""
    if args.n < 1:
        raise Failure(f"--n is {args.n}; it must be 1 or more", 2)
    as_grid = args.out.suffix.lower() == ".png"
    if args.out.suffix and not as_grid:
        raise Failure(f"--out is {args.out}; it must end in .png, or be a folder", 2)
    if as_grid and not args.out.parent.is_dir():
        raise Failure(f"--out is {args.out}; there is no folder {args.out.parent}", 2)
    kept, done = [], 0
    with (
        target(args) as asked,
        tqdm(total=args.n, desc="sampling", unit="", disable=None, leave=False) as bar,
    ):
        if not as_grid:
            args.out.mkdir(parents=True, exist_ok=True)
        drawn = asked.client.iter_samples(
            args.n, temperature=args.temperature, seed=args.seed, model=asked.model
        )
        for samples in drawn:
            if as_grid:
                kept.append(samples.images)
            else:
                for i, image in enumerate(samples.images, done):
                    to_pil(image).save(args.out / f"{i:06}.png")
            done += len(samples)
            bar.update(len(samples))
        if as_grid:
            images = np.concatenate(kept)
            side = int(np.ceil(np.sqrt(len(images)))) * (images.shape[1] + 1)
            grid(images, scale=max(1, _GRID_PIXELS // side)).save(args.out)
    result = {
        "out": str(args.out),
        "n": done,
        "seed": samples.seed,
        "model": samples.model,
        "version": samples.version,
    }
    print(json.dumps(result) if args.json else f"wrote {args.out}: {done} images with seed {samples.seed}")
    return 0
