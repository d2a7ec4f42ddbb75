"""Interrupted runs resume from their last saved state and end with the weights of an uninterrupted run."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import pytest
from glowserve_training import presets
from glowserve_training.presets import Preset
from lightning.pytorch.callbacks import Callback

from glowserve.cli import main
from tests.training.runs import (
    PLAIN,
    Interrupt,
    NoiseIsNaN,
    Recorder,
    TinyRun,
    Uninterrupted,
    rollbacks_reported,
    rollbacks_saved,
    run,
    same_weights,
)


class CtrlC(Callback):
    """Sends SIGINT after step 9."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == 9:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("step", "saved"), [(1, 0), (7, 6), (8, 6), (20, 18)])
def test_an_interrupted_run_resumes_to_the_weights_of_an_uninterrupted_one(
    step: int, saved: int, uninterrupted: Uninterrupted, tiny_run: TinyRun, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tiny_run(), tmp_path, [Interrupt(step)])
    assert not (tmp_path / "model.ckpt").exists()
    assert (tmp_path / "resume" / "last.ckpt").exists() == (saved > 0)

    recorder = Recorder()
    result = run(tiny_run(), tmp_path, [recorder])

    assert list(recorder.rates) == list(range(saved + 1, 21))
    assert same_weights(result, uninterrupted.result)


def test_a_run_that_is_interrupted_several_times_and_moved_ends_with_the_same_weights(
    uninterrupted: Uninterrupted, tiny_run: TinyRun, tmp_path: Path
) -> None:
    for step in (5, 11, 16):
        with pytest.raises(KeyboardInterrupt):
            run(tiny_run(), tmp_path / "here", [Interrupt(step)])
    (tmp_path / "here").rename(tmp_path / "there")

    assert same_weights(run(tiny_run(), tmp_path / "there"), uninterrupted.result)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_run_that_was_interrupted_after_its_last_step_only_writes_its_result(
    uninterrupted: Uninterrupted, tiny_run: TinyRun, tmp_path: Path
) -> None:
    run(tiny_run(), tmp_path).unlink()

    recorder = Recorder()
    result = run(tiny_run(), tmp_path, [recorder])

    assert recorder.rates == {}
    assert same_weights(result, uninterrupted.result)


def test_ctrl_c_raises_keyboard_interrupt_and_restores_the_signal_handler(
    uninterrupted: Uninterrupted, tiny_run: TinyRun, tmp_path: Path
) -> None:
    handler = signal.getsignal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tiny_run(), tmp_path, [CtrlC()])

    assert signal.getsignal(signal.SIGINT) == handler
    assert not (tmp_path / "model.ckpt").exists()
    assert same_weights(run(tiny_run(), tmp_path), uninterrupted.result)


def test_a_killed_command_resumes_to_the_weights_of_an_uninterrupted_run(
    all_validations: None,
    few_digits: Path,
    tiny_run: TinyRun,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    sizes = {"n_bits": 4, "levels": 2, "steps_per_level": 1, "width": 4, "steps": 120, "batch_size": 16}
    command = ["train", "--data", str(few_digits), "--device", "cpu", "--json"]
    command += ["--out", str(tmp_path / "killed")]
    command += [
        part for name, n in (PLAIN | sizes).items() for part in (f"--{name.replace('_', '-')}", str(n))
    ]

    with subprocess.Popen(
        [sys.executable, "-m", "glowserve", *command], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        # The line of its second validation, which follows the first saved state.
        printed = list(itertools.takewhile(lambda line: not line.startswith("step 12 of"), process.stderr))
        process.kill()

    assert process.returncode == -signal.SIGKILL, "".join(printed)
    assert (tmp_path / "killed" / "resume" / "last.ckpt").exists()
    assert not (tmp_path / "killed" / "model.ckpt").exists()
    capfd.readouterr()
    assert main(command) == 0
    output = capfd.readouterr()
    assert json.loads(output.out)["steps"] == 120
    assert "resuming from step" in output.err
    undisturbed = run(tiny_run(**sizes), tmp_path / "undisturbed")
    assert same_weights(tmp_path / "killed" / "model.ckpt", undisturbed)


# Values that are not given again


def test_a_run_resumes_without_any_value_though_the_defaults_have_changed(
    uninterrupted: Uninterrupted, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tiny_run(), tmp_path, [Interrupt(7)])
    other = Preset(levels=1, steps_per_level=2, width=8, steps=7, batch_size=8, learning_rate=1e-3)
    for name in ("_SMALL", "_SMALL_DRAWINGS"):
        monkeypatch.setattr(presets, name, dict.fromkeys(presets._SMALL, other))
    monkeypatch.setattr(presets, "default_patience", lambda _: 1)

    assert main(["train", "--out", str(tmp_path), "--device", "cpu"]) == 0

    assert same_weights(tmp_path / "model.ckpt", uninterrupted.result)


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (["--learning-rate", "0.1"], r"learning_rate was 0\.004 and is now 0\.1"),
        (["--size", "paper"], "size was small and is now paper"),
        (["--patience", "1"], "patience was 5 and is now 1"),
        (["--split-seed", "1"], r"data\.split_seed was 0 and is now 1"),
        (["--image-size", "4"], r"data\.image_size was 8 and is now 4; model\.image_size was 8 and is now 4"),
    ],
)
def test_a_value_that_is_given_must_be_that_of_the_run(
    flags: list[str], difference: str, tiny_run: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tiny_run(), tmp_path, [Interrupt(7)])
    capfd.readouterr()

    assert main(["train", "--out", str(tmp_path), "--device", "cpu", *flags]) == 2

    (line,) = capfd.readouterr().err.splitlines()
    assert re.search(f"has a run with other arguments: {difference}. Use", line)


def test_without_a_run_the_data_must_be_given(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--out", str(tmp_path / "new")]) == 2

    assert capfd.readouterr().err == (
        f"glowserve: {tmp_path / 'new'} has no run to resume: give --data to begin one\n"
    )


# After rollbacks


@pytest.fixture(scope="module")
def rolled_back(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """A run with two rollbacks."""
    recorder = Recorder()
    path = tmp_path_factory.mktemp("rolled-back")
    return Uninterrupted(run(tiny_run(), path, [NoiseIsNaN(7, 15), recorder]), recorder)


@pytest.mark.parametrize("step", [8, 9, 12, 13])
def test_a_run_that_is_interrupted_after_a_rollback_resumes_to_the_weights_of_one_that_was_not(
    step: int,
    rolled_back: Uninterrupted,
    tiny_run: TinyRun,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        run(tiny_run(), tmp_path, [NoiseIsNaN(7, 15), Interrupt(step)])
    capfd.readouterr()

    result = run(tiny_run(), tmp_path, [NoiseIsNaN(7, 15), recorder])

    last = rollbacks_reported(capfd.readouterr().err)[-1]
    assert last.endswith("learning rate times 0.25 (rollback 2 of 5)")
    assert rollbacks_saved(tmp_path) == 2
    assert {step: rolled_back.record.rates[step] for step in recorder.rates} == recorder.rates
    assert same_weights(result, rolled_back.result)


def test_a_run_that_is_interrupted_after_its_rollback_to_the_initial_weights_resumes_to_the_same_weights(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    expected = run(tiny_run(), tmp_path / "uninterrupted", [NoiseIsNaN(1)])
    with pytest.raises(KeyboardInterrupt):  # the state of step 2, equal to that of step 0, has been saved
        run(tiny_run(), tmp_path / "interrupted", [NoiseIsNaN(1), Interrupt(3)])

    result = run(tiny_run(), tmp_path / "interrupted")

    assert same_weights(result, expected)
