"""Draws test images moved along attributes, a row for each: the pictures of docs/attributes.md.

python tests/benchmarks/attribute_strips.py MODEL DATA out.png --attributes thick slanted --rows 2
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from glowserve_export.evaluation import training_data
from glowserve_training.data import choose_splits, open_source

import glowserve
from glowserve.grid import grid
from glowserve.images import prepare
from glowserve.runtime.repository import newest_bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--attributes", nargs="+", required=True)
    parser.add_argument(
        "--rows", type=int, default=2, help="images for each attribute, the first of the test split"
    )
    parser.add_argument("--range", type=float, nargs=3, default=(-2, 2, 9), metavar=("FROM", "TO", "COUNT"))
    parser.add_argument("--scale", type=int, default=2)
    args = parser.parse_args()
    first, last, count = args.range
    bundle = newest_bundle(args.model)
    config = replace(training_data(bundle), data=args.data)
    size = config.image_size
    source, indices = choose_splits(open_source(args.data), config)["test"]
    images = [
        prepare(source[int(i)], size.height, size.width, config.channels, config.preparation)
        for i in indices[: args.rows]
    ]
    with glowserve.open(args.model) as client:
        strips = [
            client.manipulate(image, attribute, np.linspace(first, last, int(count)))
            for attribute in args.attributes
            for image in images
        ]
    grid(np.concatenate(strips), int(count), scale=args.scale).save(args.out)


if __name__ == "__main__":
    main()
