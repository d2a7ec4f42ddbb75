"""How often training is checked, validated and saved."""

from __future__ import annotations

import pytest
from glowserve_training import fit


@pytest.mark.parametrize(
    ("steps", "check", "validate"),
    [
        (1, 1, 1),
        (19, 1, 1),
        (42, 2, 2),
        (999, 49, 49),
        (1500, 50, 50),
        (2500, 50, 100),  # 125 is no multiple of 50
        (6000, 50, 300),
        (200_000, 50, 500),
    ],
)
def test_validations_are_a_twentieth_of_the_run_apart_and_follow_a_check(
    all_validations: None, steps: int, check: int, validate: int
) -> None:
    assert fit._intervals(steps) == (check, validate)
