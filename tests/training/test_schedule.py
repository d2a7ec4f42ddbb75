"""How often training is checked, validated and saved, and how the learning rate changes."""

from __future__ import annotations

import math

import pytest
from glowserve_training import schedule
from glowserve_training.config import DataConfig, GlowConfig, Part, RunConfig
from glowserve_training.presets import run_config


def config(steps: int, *extensions: Part, **changes: object) -> RunConfig:
    return RunConfig(
        model=GlowConfig(image_size=8, channels=1),
        data=DataConfig(data="digits", image_size=8, channels=1),
        **({"steps": steps, "batch_size": 16, "warmup_steps": 4, "extensions": extensions} | changes),  # type: ignore[arg-type]
    )


def part(begin: int, end: int, patience: int = 0) -> Part:
    return Part(begin=begin, end=end, patience=patience)


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
    assert schedule.intervals(steps) == (check, validate)


def test_the_last_step_of_each_part_is_checked_and_validated(all_validations: None) -> None:
    run = config(999, part(999, 1500), part(1234, 1600))  # patience ran out at step 1234

    validated = [step for step in range(1, 1601) if schedule.is_validation_due(run, step)]

    assert validated == sorted({*range(49, 1601, 49), 999, 1500, 1600})
    assert all(schedule.is_check_due(run, step) for step in validated)


@pytest.mark.parametrize(("steps", "patience"), [(1, 1), (20, 10), (1500, 15), (6000, 10), (200_000, 200)])
def test_patience_is_half_of_the_validations_unless_given(
    all_validations: None, steps: int, patience: int
) -> None:
    given = {"image_size": 8, "channels": 1, "steps": steps}

    assert run_config("digits", **given).patience == patience
    assert run_config("digits", patience=0, **given).patience == 0
    assert run_config("digits", patience=3, **given).patience == 3


def test_a_cosine_begins_again_with_each_extension() -> None:
    run = config(20, part(20, 60), part(50, 100))

    factors = [schedule.learning_rate_factor(run, step) for step in range(100)]

    assert factors[:20] == [schedule.learning_rate_factor(config(20), step) for step in range(20)]
    assert factors[19] < 0.01
    assert factors[20:24] == pytest.approx([(1 + i) / 4 * _cosine(i, 40) for i in range(4)])
    assert factors[24:50] == pytest.approx([_cosine(i, 40) for i in range(4, 30)])
    assert factors[54:] == pytest.approx([_cosine(i, 50) for i in range(4, 50)])
    assert schedule.learning_rate_factor(run, 100) == pytest.approx(0, abs=1e-12)


def _cosine(step: int, steps: int) -> float:
    return (1 + math.cos(math.pi * step / steps)) / 2


def test_a_constant_rate_goes_on_in_an_extension() -> None:
    run = config(20, part(20, 60), schedule="constant")

    factors = [schedule.learning_rate_factor(run, step) for step in range(60)]

    assert factors == [0.25, 0.5, 0.75] + 57 * [1.0]


@pytest.mark.parametrize("begin", [0, 21])
def test_an_extension_that_begins_elsewhere_is_refused(begin: int) -> None:
    with pytest.raises(ValueError, match=f"an extension begins at step {begin}; it must lie in 1 to 20"):
        config(20, part(begin, 60))


def test_an_extension_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="end is 20; it must be more than begin, 20"):
        part(20, 20)
