"""Draws the results of `evaluate_against`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glowserve.files import atomic_write
from glowserve.output import printable
from glowserve_export.against import BASELINES, Against

_FIGURES = {"auroc": "AUROC", "aupr": "AUPR", "fpr": "FPR at 95 % TPR"}
_BASELINE_COLOURS = ("0.25", "0.6")


def draw_separations(result: Against, path: Path) -> None:
    """Draws AUROC, AUPR and FPR of every detector on every set, with their intervals.

    Args:
        result: the result.
        path: the .png file to write.
    """
    rows = len(result.sets)
    height = rows * (0.16 * len(result.detectors) + 0.14) + 1.5
    figure = Figure(figsize=(13, height), dpi=110, layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, len(_FIGURES), sharey=True)
    for axes, (name, label) in zip(panels, _FIGURES.items(), strict=True):
        _draw_panel(axes, result, name)
        axes.set_title(label)
    names = [f"{printable(each.name)} ({each.images:,})" for each in result.sets]
    panels[0].set_yticks(range(rows), names, parse_math=False)
    panels[0].set_ylim(rows - 0.5, -0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(f"{result.images:,} held-out images against out-of-distribution images")
    _save(figure, path)


def _draw_panel(axes: Axes, result: Against, figure: str) -> None:
    n = len(result.detectors)
    for i, detector in enumerate(result.detectors):
        estimates = [getattr(each.separations[detector], figure) for each in result.sets]
        values = np.array([each.value for each in estimates])
        spread = np.array([[each.value - each.low, each.high - each.value] for each in estimates]).T
        axes.errorbar(
            values,
            np.arange(len(values)) + 0.8 * ((i + 0.5) / n - 0.5),
            xerr=spread,
            fmt="s" if detector in BASELINES else "o",
            markersize=4,
            elinewidth=1.2,
            color=_colour(result.detectors, detector),
            label=detector,
        )
    for row in range(1, len(result.sets), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.95", zorder=0)
    if figure != "fpr":
        axes.axvline(0.5, color="0.4", linewidth=0.8, linestyle=":", zorder=1)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="x", alpha=0.3)


def draw_false_alarms(result: Against, path: Path) -> None:
    """Draws the false-alarm rates beside the rates asked for, in their beta-binomial intervals.

    Args:
        result: the result.
        path: the .png file to write.
    """
    rates = next(iter(result.false_alarms.values()))
    figure = Figure(
        figsize=(4 * len(rates), 0.32 * len(result.detectors) + 1.6), dpi=110, layout="constrained"
    )
    panels: Sequence[Axes] = figure.subplots(1, len(rates), sharey=True)
    for i, (axes, rate) in enumerate(zip(panels, rates, strict=True)):
        axes.axvspan(100 * rate.low, 100 * rate.high, color="C2", alpha=0.2)
        axes.axvline(100 * rate.asked, color="C2", linewidth=1)
        for row, detector in enumerate(result.detectors):
            measured = 100 * result.false_alarms[detector][i].measured
            axes.plot(measured, row, "o", color=_colour(result.detectors, detector))
        axes.set_xlim(left=0, right=max(axes.get_xlim()[1], 120 * rate.high))
        axes.set_title(f"{100 * rate.asked:g} % asked for")
        axes.set_xlabel(f"% of {result.images:,} held-out images flagged")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(result.detectors)), result.detectors)
    panels[0].set_ylim(len(result.detectors) - 0.5, -0.5)
    figure.suptitle(
        f"False alarms; shaded: the 95 % interval with {result.calibration_images:,} calibration images"
    )
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings(), atomic_write(path) as file:
        warnings.filterwarnings("ignore", "Glyph")  # letters of a set's name that the font lacks become boxes
        figure.savefig(file, format="png")


def _colour(detectors: Sequence[str], detector: str) -> str:
    """Greys for the baselines, colours for the scores."""
    if detector in BASELINES:
        return _BASELINE_COLOURS[list(BASELINES).index(detector)]
    return f"C{[name for name in detectors if name not in BASELINES].index(detector)}"
