"""Draws the demo's pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

Float64Array = npt.NDArray[np.float64]


def draw_scores(bits_per_dim: Mapping[str, Float64Array], path: Path) -> None:
    """Draws a histogram of bits/dim for each group of images, on a common logarithmic axis.

    Args:
        bits_per_dim: [N] by the name of the group. The first group is in-distribution.
        path: the picture to write.
    """
    finite = np.concatenate([bits[np.isfinite(bits)] for bits in bits_per_dim.values()])
    bins = np.geomspace(finite.min() * 0.95, finite.max() * 1.05, 60)
    threshold = np.quantile(next(iter(bits_per_dim.values())), 0.99)
    figure = Figure(figsize=(8, 1.2 * len(bits_per_dim) + 1), dpi=120, layout="constrained")
    all_axes = figure.subplots(len(bits_per_dim), sharex=True)
    for axes, (i, (name, bits)) in zip(all_axes, enumerate(bits_per_dim.items()), strict=True):
        axes.hist(np.clip(bits, bins[0], bins[-1]), bins, color="C0" if i == 0 else "C1")
        axes.axvline(threshold, color="black", linewidth=1, linestyle="--")
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.set_yticks([])
        axes.set_xscale("log")
    all_axes[-1].xaxis.set_major_formatter("{x:g}")
    all_axes[-1].set_xlabel("bits/dim (lower: likelier)")
    figure.suptitle("Scores of images; 99 of 100 held-out digits are left of the dashed line")
    figure.savefig(path)
