"""What a run says on stderr: of itself, and of its progress."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from glowserve_training import progress
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.description import describe_run, duration

from tests.training.runs import Interrupt, TinyRun, Uninterrupted, run

Printed = pytest.CaptureFixture[str]


def lines(printed: Printed) -> list[str]:
    return printed.readouterr().err.splitlines()


def test_without_a_terminal_each_validation_is_a_line_on_stderr(
    tiny_run: TinyRun, tmp_path: Path, capsys: Printed
) -> None:
    run(tiny_run(steps=3), tmp_path)

    out, err = capsys.readouterr()
    assert out == ""
    found = [line for line in err.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in found] == [f"step {step} of 3" for step in (1, 2, 3)]
    assert all("bits/dim train " in line and ", validation " in line for line in found)


def test_before_the_first_step_data_model_training_and_device_are_told(
    tiny_run: TinyRun, uninterrupted: Uninterrupted, tmp_path: Path, capsys: Printed
) -> None:
    run(tiny_run(), tmp_path)

    told = lines(capsys)[:6]
    parameters = sum(p.numel() for p in load_checkpoint(uninterrupted.result).model.parameters())
    assert [line.partition(":")[0] for line in told] == [
        *("data", "images", "split", "model", "training", "device")
    ]
    assert "120 images" in told[0]
    assert "8 x 8 pixels, all grey" in told[1]
    assert "96 to train on, 6 for validation, 6 for calibration, 12 for test" in told[2]
    assert all(word in told[3] for word in ("levels 2", "steps per level 1", "width 4", "parametrization"))
    assert told[3].endswith(f"; {parameters:,} parameters")
    assert told[4] == (
        "training: 20 steps of 16 images, learning rate 0.004 (cosine), validated every 2 steps, patience 5 "
        "validations, seed 0"
    )
    assert told[5] == "device: cpu, 1 thread, precision 32-true"


@pytest.mark.parametrize("coupling", ["affine", "spline"])
def test_every_field_of_the_model_is_told(
    coupling: str, tiny_run: TinyRun, uninterrupted: Uninterrupted
) -> None:
    model, config = load_checkpoint(uninterrupted.result).model, tiny_run()
    config = replace(config, model=replace(config.model, coupling=coupling))
    (told, *_) = describe_run(config, model, 0, torch.device("cpu"), 2)

    for name in set(vars(model.config)) - {"image_size", "channels", "class_count"}:
        assert (name.replace("_", " ") in told) == (coupling == "spline" or not name.startswith("spline"))
    assert "class" not in told
    model_config, data = replace(config.model, class_count=2), replace(config.data, classes=("cat", "dog"))
    (told, *_) = describe_run(
        replace(config, model=model_config, data=data), model, 0, torch.device("cpu"), 2
    )
    assert ", classes 2; " in told


def test_the_expected_time_is_told_after_the_first_steps(
    tiny_run: TinyRun, tmp_path: Path, capsys: Printed
) -> None:
    run(tiny_run(steps=40), tmp_path)

    found = lines(capsys)
    (expected,) = [line for line in found if line.startswith("expected time")]
    assert re.fullmatch(r"expected time: \d+ s for 40 steps, \d+ images/s", expected)
    at = found.index(expected)
    assert found[at - 1].startswith("step 20 of 40")
    assert found[at + 1].startswith("step 24 of 40")


def test_between_validations_a_line_every_few_seconds_tells_rate_loss_speed_and_time(
    all_validations: None, tiny_run: TinyRun, tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_PER_LINE", 0.0)  # each step is due

    run(tiny_run(steps=100), tmp_path)

    found = [line for line in lines(capsys) if "learning rate" in line and line.startswith("step ")]
    assert len(found) == 99  # the first step is not measured
    pattern = r"step (\d+) of 100: learning rate \S+, bits/dim \d\.\d{3}, \d+ images/s, \d+ s left"
    assert all(re.fullmatch(pattern, line) for line in found), found
    rates = [float(line.split()[6].rstrip(",")) for line in found]
    assert rates[0] < rates[20] > rates[-1]


def test_a_resumed_run_says_from_which_step(tiny_run: TinyRun, tmp_path: Path, capsys: Printed) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tiny_run(steps=4), tmp_path, [Interrupt(3)])
    capsys.readouterr()

    run(tiny_run(steps=4), tmp_path)

    found = lines(capsys)
    assert "resuming from step 2" in found
    assert found[-1].startswith("step 4 of 4: bits/dim")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99, "99 s"), (101, "2 min"), (1800, "30 min"), (9000, "2.5 h"), (500_000, "138.9 h")],
)
def test_a_duration_has_the_unit_that_people_would_take(seconds: float, text: str) -> None:
    assert duration(seconds) == text
