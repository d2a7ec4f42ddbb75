"""The learning curve of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from glowserve_training.curve import draw_curve
from matplotlib.figure import Figure
from PIL import Image

from tests.training.runs import SpoilEMA, TinyRun, Uninterrupted, run


def drawn(logs: Path, path: Path, best_step: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The axes of the curve."""
    figures: list[Figure] = []
    save = Figure.savefig
    with monkeypatch.context() as patch:
        patch.setattr(
            Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k))
        )
        draw_curve(logs, 16, path, best_step)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
    return figures[0].axes[0]


def test_the_step_whose_weights_are_kept_is_marked(
    uninterrupted: Uninterrupted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = drawn(uninterrupted.result.parent / "logs", tmp_path / "curve.png", 14, monkeypatch)

    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines) == ["training (each a batch)", "validation", "test", "kept: step 14"]
    assert list(lines["kept: step 14"].get_xdata()) == [14 * 16, 14 * 16]
    assert list(lines["validation"].get_xdata()) == [16 * step for step in range(2, 21, 2)]


def test_bits_that_are_not_finite_leave_gaps(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny_run(patience=0), tmp_path, [SpoilEMA(10, math.inf)])

    axes = drawn(tmp_path / "logs", tmp_path / "curve.png", 10, monkeypatch)

    assert all(map(math.isfinite, axes.get_ylim()))
