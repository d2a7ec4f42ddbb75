"""A finished run goes on: from its last state, with a new warm-up and cosine, and the best weights of all its steps."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from glowserve_training.checkpoint import TrainingRecord, load_checkpoint
from glowserve_training.config import Part, RunConfig
from glowserve_training.directory import RunDirectory
from glowserve_training.errors import RunError
from glowserve_training.schedule import learning_rate_factor

from glowserve.cli import main
from tests.training.runs import (
    Interrupt,
    NoiseIsNaN,
    Recorder,
    SpoilEMA,
    TinyRun,
    Uninterrupted,
    events,
    run,
    same_weights,
)

Printed = pytest.CaptureFixture[str]


def record(path: Path) -> TrainingRecord:
    return load_checkpoint(path).training


@pytest.fixture
def finished(uninterrupted: Uninterrupted, tmp_path: Path) -> Path:
    """RUN_DIR of the finished tiny run of 20 steps."""
    return Path(shutil.copytree(uninterrupted.result.parent, tmp_path / "finished"))


def extended(run_dir: Path, steps: int, patience: int = 0) -> RunConfig:
    directory = RunDirectory(run_dir)
    config = directory.config()
    assert config is not None
    return directory.extended(config, steps, patience)


def planned(config: RunConfig, *ends: int) -> RunConfig:
    """The same run, extended from the start."""
    begins = (config.steps, *ends)
    parts = [Part(begin=begin, end=end, patience=0) for begin, end in zip(begins, ends, strict=False)]
    return replace(config, extensions=tuple(parts))


def test_an_extended_run_ends_with_the_weights_of_one_that_was_planned_so(
    finished: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    before, recorder = Recorder(), Recorder()
    expected = run(planned(tiny_run(), 31, 40), tmp_path / "planned", [before])

    run(extended(finished, 31), finished, [recorder])
    result = run(extended(finished, 40), finished, [recorder])

    assert same_weights(result, expected)
    assert same_weights(finished / "last.ckpt", expected.parent / "last.ckpt")
    assert record(result) == record(expected)
    assert list(recorder.rates) == list(range(21, 41))
    assert recorder.rates == {step: before.rates[step] for step in range(21, 41)}


def test_the_learning_rate_warms_up_and_falls_again(finished: Path) -> None:
    config, recorder = extended(finished, 40), Recorder()

    run(config, finished, [recorder])

    factors = {step: learning_rate_factor(config, step - 1) for step in recorder.rates}
    assert recorder.rates == {step: config.learning_rate * factor for step, factor in factors.items()}
    assert recorder.rates[21] == recorder.rates[22] / learning_rate_factor(config, 21) * factors[21]
    assert max(recorder.rates.values()) > 0.9 * config.learning_rate
    assert recorder.rates[40] < 0.05 * config.learning_rate


def test_rollbacks_of_the_finished_run_still_lower_the_rate(tiny_run: TinyRun, tmp_path: Path) -> None:
    recorder = Recorder()
    run(tiny_run(), tmp_path, [NoiseIsNaN(7)])

    run(extended(tmp_path, 40), tmp_path, [recorder])

    assert 0.4 < max(recorder.rates.values()) / tiny_run().learning_rate <= 0.5


@pytest.mark.parametrize("step", [21, 25, 30])
def test_an_interrupted_extension_resumes_to_the_same_weights(
    step: int, finished: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    expected = run(extended(other, 30), other)
    before = record(finished / "model.ckpt")

    with pytest.raises(KeyboardInterrupt):
        run(extended(finished, 30), finished, [Interrupt(step)])
    assert record(finished / "model.ckpt") == before  # until there is a better one
    result = run(extended(finished, 30), finished)

    assert same_weights(result, expected)
    assert record(result) == record(expected)


def test_a_run_of_an_odd_number_of_steps_is_extended(tiny_run: TinyRun, tmp_path: Path) -> None:
    expected = run(planned(tiny_run(steps=21), 30), tmp_path / "planned")
    run(tiny_run(steps=21), tmp_path / "run")

    result = run(extended(tmp_path / "run", 30), tmp_path / "run")

    assert same_weights(result, expected)


def test_the_best_weights_of_the_finished_run_stay_if_the_extension_has_none_better(
    finished: Path, uninterrupted: Uninterrupted
) -> None:
    result = run(extended(finished, 30), finished, [SpoilEMA(20)])

    assert same_weights(result, uninterrupted.result)
    assert (record(result).best_step, record(result).steps) == (20, 30)
    assert record(finished / "last.ckpt").weights_step == 30


def test_so_do_the_last_weights_of_a_run_that_kept_no_others(
    finished: Path, uninterrupted: Uninterrupted
) -> None:
    state = torch.load(finished / "resume" / "last.ckpt", weights_only=True)
    del state["callbacks"]["Validation"]  # as in version 0.1.0
    torch.save(state, finished / "resume" / "last.ckpt")

    result = run(extended(finished, 30), finished, [SpoilEMA(20)])

    assert same_weights(result, uninterrupted.result)
    assert record(result).best_step == 20


def test_a_run_whose_patience_ran_out_is_extended_from_there(tiny_run: TinyRun, tmp_path: Path) -> None:
    run(tiny_run(patience=2), tmp_path, [SpoilEMA(12)])
    assert record(tmp_path / "model.ckpt").steps == 16
    config, recorder = extended(tmp_path, 18, 3), Recorder()
    assert config.extensions == (Part(begin=16, end=18, patience=3),)

    run(config, tmp_path, [recorder])

    assert list(recorder.rates) == [17, 18]
    assert record(tmp_path / "model.ckpt").steps == 18


def test_the_patience_of_an_extension_begins_anew(finished: Path) -> None:
    config = extended(finished, 60, 3)

    result = run(config, finished, [SpoilEMA(20)])

    assert (record(result).best_step, record(result).steps) == (20, 26)
    recorder = Recorder()
    assert run(config, finished, [recorder]) == result
    assert recorder.weights == {}


def test_so_it_does_in_a_run_that_was_planned_with_its_extension(tiny_run: TinyRun, tmp_path: Path) -> None:
    spoil = SpoilEMA(14)  # from three validations before the extension
    config = tiny_run(patience=0)
    run(config, tmp_path / "extended", [spoil])

    result = run(extended(tmp_path / "extended", 40, 4), tmp_path / "extended", [spoil])
    at_once = replace(config, extensions=(Part(begin=20, end=40, patience=4),))
    expected = run(at_once, tmp_path / "planned", [spoil])

    assert record(result) == record(expected)
    assert (record(result).best_step, record(result).steps) == (14, 28)


def test_the_logs_go_on(finished: Path) -> None:
    run(extended(finished, 30), finished)

    assert [step for step, _ in events(finished)["validation_bits_per_dim"]] == list(range(2, 31, 2))


# The command


def test_the_command_extends_resumes_and_is_then_done(finished: Path, capfd: Printed) -> None:
    command = ["train", "--out", str(finished), "--extend-to", "30", "--device", "cpu", "--json"]
    with pytest.raises(KeyboardInterrupt):
        run(extended(finished, 30), finished, [Interrupt(25)])

    assert main(command) == 0
    first = capfd.readouterr()
    assert main(command) == 0
    again = capfd.readouterr()
    assert main([word for word in command if word not in ("--extend-to", "30")]) == 0

    assert "resuming from step 24" in first.err
    assert json.loads(first.out)["steps"] == 30
    assert again.out == first.out
    assert again.err.startswith(f"{finished} has a finished run: nothing to do\n")
    assert "step" not in again.err
    assert capfd.readouterr() == again


def test_the_data_of_an_extended_run_may_have_moved(finished: Path, few_digits: Path, tmp_path: Path) -> None:
    moved = shutil.copy(few_digits, tmp_path / "moved.npz")
    command = ["train", "--data", str(moved), "--out", str(finished), "--extend-to", "30", "--device", "cpu"]

    assert main(command) == 0

    assert load_checkpoint(finished / "model.ckpt").data.data == str(moved)


def test_it_is_said_that_a_run_is_extended(finished: Path, capfd: Printed) -> None:
    assert main(["train", "--out", str(finished), "--extend-to", "30", "--device", "cpu"]) == 0

    assert "extending the run from step 20\n" in capfd.readouterr().err


def state_gone(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "resume")


def unfinished(run_dir: Path) -> None:
    (run_dir / "model.ckpt").unlink()


def nothing(run_dir: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "flags", "sentence"),
    [
        (
            nothing,
            ["--extend-to", "20"],
            "extend_to is 20, and the run in .* has had 20 steps; it must be more",
        ),
        (
            nothing,
            ["--extend-to", "-3"],
            "extend_to is -3, and the run in .* has had 20 steps; it must be more",
        ),
        (nothing, ["--extend-to", "30", "--width", "5"], r"model\.width was 4 and is now 5"),
        (
            nothing,
            ["--extend-to", "30", "--steps", "30"],
            "steps was 20 and is now 30.* --extend-to lengthens",
        ),
        (nothing, ["--steps", "30"], "steps was 20 and is now 30.* --extend-to lengthens"),
        (nothing, ["--extend-to", "30", "--patience", "-1"], "patience is -1; it must be 0 or more"),
        (state_gone, ["--extend-to", "30"], "cannot be extended without the state after its last step"),
        (unfinished, ["--extend-to", "30"], "is to have 20 steps and has not finished; .* finish it first"),
    ],
)
def test_what_cannot_be_extended_is_refused_in_a_sentence(
    prepare: Callable[[Path], None], flags: list[str], sentence: str, finished: Path, capfd: Printed
) -> None:
    prepare(finished)

    assert main(["train", "--out", str(finished), "--device", "cpu", *flags]) == 2

    (line,) = capfd.readouterr().err.splitlines()
    assert re.search(sentence, line), line


def test_an_extension_is_not_changed_before_it_has_finished(finished: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(extended(finished, 30), finished, [Interrupt(25)])

    for steps, patience in ((40, 0), (30, 7)):
        with pytest.raises(RunError, match="is to have 30 steps and has not finished"):
            extended(finished, steps, patience)


def test_a_directory_without_a_run_is_not_extended(tmp_path: Path, capfd: Printed) -> None:
    assert main(["train", "--data", "digits", "--out", str(tmp_path / "new"), "--extend-to", "30"]) == 2

    assert "has no run to extend: leave --extend-to out to begin one" in capfd.readouterr().err
