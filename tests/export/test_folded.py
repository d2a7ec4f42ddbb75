"""FoldedGlow: names of steps, and figures of its matrices."""

from __future__ import annotations

import numpy as np
import pytest
from glowserve_export.convolution import FoldedConv
from glowserve_export.couplings import FoldedCoupling, FoldedNetwork, Halves, Shift
from glowserve_export.folded import FoldedStep, condition_number, inversion_residual
from glowserve_export.frontends.glowserve import fold_glow

from tests.export.models import random_glow


def _step(matrix: np.ndarray, inverse: np.ndarray) -> FoldedStep:
    conv = FoldedConv(np.zeros((1, 1, 1, 1)), np.zeros(1))
    coupling = FoldedCoupling(Halves(), FoldedNetwork(conv, conv, conv), Shift())
    return FoldedStep(matrix, np.zeros(2), inverse, np.zeros(2), coupling)


def test_steps_are_named_by_level_and_number_from_the_pixels_on() -> None:
    names = [name for name, _ in fold_glow(random_glow(levels=2, steps_per_level=2)).named_steps()]
    assert names == ["level1.step1", "level1.step2", "level2.step1", "level2.step2"]


def test_the_condition_number_is_the_ratio_of_singular_values() -> None:
    assert condition_number(np.diag([8.0, -2.0])) == pytest.approx(4)
    assert condition_number(np.array([[1.0, 1.0], [1.0, 1.0]])) > 1e15


def test_the_inversion_residual_is_that_of_float32() -> None:
    assert inversion_residual(_step(np.eye(2), np.eye(2))) == 0
    # A tenth is not a float32: the rounding errors of both matrices show in the product.
    residual = inversion_residual(_step(np.eye(2) * 0.1, np.eye(2) * (1 / 0.1)))
    assert 1e-9 < residual < 1e-7
    assert inversion_residual(_step(np.eye(2), np.eye(2) * 1.25)) == pytest.approx(0.25)
