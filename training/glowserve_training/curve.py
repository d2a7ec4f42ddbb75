"""The learning curve of a run: bits/dim against images seen."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from glowserve.files import atomic_write

_LABELS = {"train": "training (each a batch)", "validation": "validation", "test": "test"}


def draw_curve(logs: Path, batch_size: int, path: Path, best_step: int) -> None:
    """Draws training, validation and test bits/dim, and marks the step whose weights are kept.

    Args:
        logs: the run's TensorBoard events.
        batch_size: images in each step's batch.
        path: the .png file to write.
        best_step: the step with the best validation.
    """
    events = EventAccumulator(str(logs)).Reload()
    figure = Figure(figsize=(8, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    held_out: list[float] = []
    for name, label in _LABELS.items():
        points = events.Scalars(f"{name}_bits_per_dim")
        values = [point.value for point in points]
        width = 0.6 if name == "train" else 1.6
        axes.plot([point.step * batch_size for point in points], values, label=label, linewidth=width)
        held_out += [] if name == "train" else filter(math.isfinite, values)
    # Bits/dim that are not finite leave gaps, and the first ones, far above the others, are cut off.
    low, high = min(held_out), float(np.quantile(held_out, 0.95))
    axes.set_ylim(low - 0.15 * (high - low), high + 0.3 * (high - low))
    axes.axvline(best_step * batch_size, color="0.5", linestyle=":", label=f"kept: step {best_step}")
    axes.set_xlabel("images seen")
    axes.set_ylabel("bits/dim")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
