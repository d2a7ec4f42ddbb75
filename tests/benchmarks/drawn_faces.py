"""Draws faces that smile or do not, with glasses or without: a folder of pictures with a labels.csv.

    python tests/benchmarks/drawn_faces.py out/faces

Everything else about a face is random: its place, size and colour, its hair, how far its mouth is bent, and some noise.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

# Drawn at this many times the size, and reduced: that makes edges smooth.
_ENLARGED = 8
_NOISE = 3.0
"""The standard deviation of the noise of each value, of 255."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=3000)
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with (args.folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "smiling", "glasses"])
        for i in range(args.n):
            smiling, glasses = (int(label) for label in rng.integers(0, 2, 2))
            face(rng, args.size, bool(smiling), bool(glasses)).save(args.folder / f"{i:05}.png")
            table.writerow([f"{i:05}.png", smiling, glasses])


def face(rng: np.random.Generator, size: int, smiling: bool, glasses: bool) -> Image.Image:
    """One face."""
    side = size * _ENLARGED
    picture = Image.new("RGB", (side, side), _colour(rng, (60, 110, 150), 40))
    draw = ImageDraw.Draw(picture)
    x, y = side / 2 + rng.uniform(-0.05, 0.05, 2) * side
    radius = rng.uniform(0.32, 0.4) * side
    line = round(0.07 * radius) + 1

    def box(dx: float, dy: float, rx: float, ry: float) -> list[float]:
        """A box around a point of the face, in units of its radius."""
        return [
            *(x + (dx - rx) * radius, y + (dy - ry) * radius),
            *(x + (dx + rx) * radius, y + (dy + ry) * radius),
        ]

    draw.ellipse(box(0, -0.15, 1.05, 1.1), fill=_colour(rng, (90, 60, 40), 50))  # hair
    draw.ellipse(box(0, 0, 0.9, 1), fill=_colour(rng, (215, 170, 140), 30))
    for eye in (-0.36, 0.36):
        draw.ellipse(box(eye, -0.15, 0.11, 0.11), fill=(25, 25, 35))
        if glasses:
            draw.ellipse(box(eye, -0.15, 0.29, 0.27), outline=(20, 20, 20), width=2 * line)
    if glasses:
        draw.line(box(0, -0.17, 0.1, 0), fill=(20, 20, 20), width=2 * line)
    bend = rng.uniform(0.18, 0.35) if smiling else rng.uniform(-0.3, 0.0)
    across = np.linspace(-1, 1, 33)
    points = [(x + 0.42 * radius * t, y + (0.5 + bend * (0.5 - t * t)) * radius) for t in across.tolist()]
    draw.line(points, fill=(150, 40, 50), width=3 * line, joint="curve")
    small = np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS), np.float64)
    noisy = small + rng.normal(0, _NOISE, small.shape)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def _colour(rng: np.random.Generator, middle: tuple[int, int, int], spread: int) -> tuple[int, int, int]:
    red, green, blue = (
        int(v) for v in np.clip(np.array(middle) + rng.integers(-spread, spread + 1, 3), 0, 255)
    )
    return red, green, blue


if __name__ == "__main__":
    main()
