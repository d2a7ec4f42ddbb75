"""A run: the same weights from the same configuration, whatever happens on the way."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from filelock import FileLock
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.config import RunConfig
from glowserve_training.errors import DataError, DivergedError, RunError
from glowserve_training.hardware import Hardware
from glowserve_training.run import train
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

TinyRun = Callable[..., RunConfig]


class At(Callback):
    """Raises `error` after optimizer step `step`, and counts the steps."""

    def __init__(self, step: int, error: BaseException | None = None) -> None:
        self.step = step
        self.error = error
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.steps.append(trainer.global_step)
        if self.error is not None and trainer.global_step == self.step:
            raise self.error


class Gamble(Callback):
    """Uses up random numbers of every global generator at every step."""

    def on_train_batch_start(self, *_: Any) -> None:
        torch.rand(3)
        np.random.random(3)  # noqa: NPY002  # the global one is meant


def run(config: RunConfig, run_dir: Path, callbacks: Sequence[Callback] = ()) -> Path:
    return train(config, run_dir, hardware=Hardware(device="cpu"), callbacks=callbacks)


def weights(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path).model.state_dict()


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def events(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: (step, value) by name."""
    log = EventAccumulator(str(run_dir / "logs"))
    log.Reload()
    return {
        name: [(event.step, event.value) for event in log.Scalars(name)] for name in log.Tags()["scalars"]
    }


@pytest.fixture(scope="module")
def undisturbed(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of the tiny run, with nothing in its way. Tests do not write to it."""
    return run(tiny_run(), tmp_path_factory.mktemp("undisturbed") / "run")


# The result


def test_a_run_leaves_a_checkpoint_a_record_a_state_and_logs(undisturbed: Path, tiny_run: TinyRun) -> None:
    run_dir = undisturbed.parent

    assert undisturbed == run_dir / "model.ckpt"
    assert sorted(path.name for path in run_dir.glob("[!.]*")) == [
        "curve.png",
        "logs",
        "model.ckpt",
        "resume",
        "run.json",
    ]
    assert [path.name for path in (run_dir / "resume").iterdir()] == ["last.ckpt"]
    record = json.loads((run_dir / "run.json").read_text())
    assert record["steps"] == 42
    assert record["model"]["width"] == 4
    assert record["data"]["data"] == tiny_run().data.data


def test_training_makes_images_more_likely(checkpoint: Path) -> None:
    validation = [value for _, value in events(checkpoint.parent)["validation_bits_per_dim"]]
    metrics = load_checkpoint(checkpoint).training.metrics

    assert validation[-1] < validation[0] - 0.5
    assert validation[-1] == pytest.approx(metrics["validation_bits_per_dim"], rel=1e-3)
    assert metrics["test_bits_per_dim"] < 3.5  # a uniform distribution needs 4


def test_tensorboard_has_the_loss_the_validation_and_the_learning_rate(undisturbed: Path) -> None:
    shown = events(undisturbed.parent)

    assert {
        "train_bits_per_dim",
        "validation_bits_per_dim",
        "lr-AdamW/pg1",
        "condition",
        "coupling_scale/level1/smallest",
    } <= shown.keys()
    assert len(shown["validation_bits_per_dim"]) == 21  # at every other of 42 steps
    assert all(math.isfinite(value) for values in shown.values() for _, value in values)


# The same again


def test_the_same_seed_gives_the_same_weights_bit_for_bit(
    undisturbed: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    torch.manual_seed(99)  # whatever the generators were before

    assert equal(weights(run(tiny_run(), tmp_path / "again")), weights(undisturbed))
    assert (
        load_checkpoint(tmp_path / "again" / "model.ckpt").training == load_checkpoint(undisturbed).training
    )


def test_no_global_generator_is_read_after_initialization(
    undisturbed: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    assert equal(weights(run(tiny_run(), tmp_path / "again", [Gamble()])), weights(undisturbed))


def test_another_seed_gives_other_weights(undisturbed: Path, tiny_run: TinyRun, tmp_path: Path) -> None:
    assert not equal(weights(run(tiny_run(seed=1), tmp_path / "other")), weights(undisturbed))


# Interrupted


@pytest.mark.parametrize(("step", "saved"), [(1, 0), (7, 6), (8, 6), (42, 40)])
def test_an_interrupted_run_goes_on_to_the_weights_of_an_undisturbed_one(
    step: int, saved: int, undisturbed: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tiny_run(), tmp_path, [At(step, ZeroDivisionError())])
    assert not (tmp_path / "model.ckpt").exists()
    assert (tmp_path / "resume" / "last.ckpt").exists() == (saved > 0)

    counted = At(0)
    result = run(tiny_run(), tmp_path, [counted])

    assert counted.steps == list(range(saved + 1, 43))
    assert equal(weights(result), weights(undisturbed))


def test_a_run_that_is_interrupted_again_and_again_gets_there(
    undisturbed: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    for step in (5, 11, 30):
        with pytest.raises(ZeroDivisionError):
            run(tiny_run(), tmp_path, [At(step, ZeroDivisionError())])

    assert equal(weights(run(tiny_run(), tmp_path)), weights(undisturbed))


def test_a_run_that_ended_after_its_last_step_only_writes_its_result(
    undisturbed: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    run(tiny_run(), tmp_path).unlink()

    counted = At(0)
    result = run(tiny_run(), tmp_path, [counted])

    assert counted.steps == []
    assert equal(weights(result), weights(undisturbed))


def test_an_interrupted_run_can_be_moved(undisturbed: Path, tiny_run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tiny_run(), tmp_path / "here", [At(9, ZeroDivisionError())])
    (tmp_path / "here").rename(tmp_path / "there")

    assert equal(weights(run(tiny_run(), tmp_path / "there")), weights(undisturbed))
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_ctrl_c_comes_out_as_it_came_in(undisturbed: Path, tiny_run: TinyRun, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)

    class CtrlC(Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
            if trainer.global_step == 9:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tiny_run(), tmp_path, [CtrlC()])

    assert signal.getsignal(signal.SIGINT) == handler  # the next one is heard, too
    assert not (tmp_path / "model.ckpt").exists()
    assert equal(weights(run(tiny_run(), tmp_path)), weights(undisturbed))


def test_a_killed_command_goes_on_to_the_weights_of_an_undisturbed_run(
    few_digits: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    config = tiny_run(steps=400)
    flags = {"n-bits": 4, "levels": 2, "steps-per-level": 1, "width": 4, "steps": 400, "batch-size": 16}
    command = [sys.executable, "-m", "glowserve", "train", "--data", str(few_digits), "--device", "cpu"]
    command += ["--out", str(tmp_path / "killed"), "--json"]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    saved = tmp_path / "killed" / "resume" / "last.ckpt"

    first = subprocess.Popen(command, env=one_thread, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not saved.exists() and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        first.kill()
        first.wait()

    assert first.returncode == -signal.SIGKILL
    assert saved.exists()
    assert not (tmp_path / "killed" / "model.ckpt").exists()
    second = subprocess.run(command, env=one_thread, capture_output=True, text=True, check=True)
    assert json.loads(second.stdout)["steps"] == 400
    assert "going on from step" in second.stderr
    assert equal(weights(tmp_path / "killed" / "model.ckpt"), weights(run(config, tmp_path / "undisturbed")))


# Finished, or another


def test_a_finished_run_is_returned_at_once(tiny_run: TinyRun, tmp_path: Path) -> None:
    data = tmp_path / "digits.npz"
    data.write_bytes(Path(tiny_run().data.data).read_bytes())
    config = replace(tiny_run(steps=2), data=replace(tiny_run().data, data=str(data)))
    result = run(config, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    data.unlink()  # it is not even read

    counted = At(0)

    assert run(config, tmp_path / "run", [counted]) == result
    assert counted.steps == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 43}, "steps was 42 and is now 43"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"batch_size": 17}, "batch_size was 16 and is now 17"),
        ({"width": 5}, r"model\.width was 4 and is now 5"),
        ({"coupling": "additive"}, r"model\.coupling was affine and is now additive"),
        ({"split_seed": 4}, r"data\.split_seed was 0 and is now 4"),
        ({"width": 5, "seed": 1}, r"model\.width was 4 and is now 5; seed was 0 and is now 1"),
    ],
)
def test_other_arguments_in_the_same_directory_are_refused_by_name(
    changes: dict[str, object], sentence: str, undisturbed: Path, tiny_run: TinyRun
) -> None:
    with pytest.raises(
        RunError, match=f"holds a run with other arguments: {sentence}. Use the same arguments"
    ):
        run(tiny_run(**changes), undisturbed.parent)


def test_an_unfinished_run_is_not_gone_on_with_by_other_arguments(tiny_run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tiny_run(), tmp_path, [At(5, ZeroDivisionError())])

    with pytest.raises(RunError, match=r"learning_rate was 0\.004 and is now 0\.1"):
        run(tiny_run(learning_rate=0.1), tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "", "3"])
def test_a_damaged_record_is_refused(content: str, tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)

    with pytest.raises(RunError, match=r"run\.json is damaged; use another --out"):
        run(tiny_run(), tmp_path)


def test_data_that_cannot_be_read_does_not_bind_the_directory(tiny_run: TinyRun, tmp_path: Path) -> None:
    mistyped = replace(tiny_run(steps=2), data=replace(tiny_run().data, data="/no/such/folder"))

    with pytest.raises(DataError, match="no such file"):
        run(mistyped, tmp_path / "run")

    assert run(tiny_run(steps=2), tmp_path / "run").exists()


# Diverged


def test_a_run_that_diverges_says_so_and_leaves_no_model(tiny_run: TinyRun, tmp_path: Path) -> None:
    config = tiny_run(learning_rate=1e6)

    for _ in range(2):  # nor does going on with it
        with pytest.raises(
            DivergedError,
            match=r"not finite at step \d+, after .* a learning rate below 1e\+06",
        ):
            run(config, tmp_path)
        assert not (tmp_path / "model.ckpt").exists()


def test_a_batch_of_one_can_be_trained_on(tiny_run: TinyRun, tmp_path: Path) -> None:
    # At the third level, an image is a single place: its channels are constant over the first batch.
    result = run(tiny_run(levels=3, steps_per_level=6, batch_size=1, steps=10), tmp_path)

    assert load_checkpoint(result).training.metrics["test_bits_per_dim"] < 100


# The configuration


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        ({"warmup_steps": 0}, "warmup_steps is 0; it must be 1 or more"),
        ({"learning_rate": -1.0}, r"learning_rate is -1\.0; it must be a positive number"),
        ({"learning_rate": math.inf}, "learning_rate is inf; it must be a positive number"),
        ({"clip_gradient_norm": math.nan}, "clip_gradient_norm is nan; it must be a positive number"),
        ({"seed": -1}, "seed is -1; it must lie in 0"),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must lie in 0"),
    ],
)
def test_an_impossible_run_is_refused_with_the_value_and_the_remedy(
    changes: dict[str, Any], sentence: str, tiny_run: TinyRun
) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(tiny_run(), **changes)


def test_the_largest_seed_is_good(tiny_run: TinyRun, tmp_path: Path) -> None:
    assert run(tiny_run(steps=1, seed=2**63 - 1), tmp_path).exists()


def test_a_run_is_not_gone_on_with_when_its_data_has_changed(tmp_path: Path, tiny_run: TinyRun) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", images=rng.integers(0, 256, (100, 8, 8, 1), dtype=np.uint8))
    config = tiny_run()
    config = replace(config, data=replace(config.data, data=str(tmp_path / "a.npz")))
    with pytest.raises(RuntimeError, match="enough"):
        train(config, tmp_path / "run", hardware=Hardware(device="cpu"), callbacks=[_Interrupts()])
    np.savez(tmp_path / "a.npz", images=rng.integers(0, 256, (130, 8, 8, 1), dtype=np.uint8))
    with pytest.raises(
        RunError, match=r"its data has changed: images\.held_out_sha256 was .* images\.train was 80"
    ):
        train(config, tmp_path / "run", hardware=Hardware(device="cpu"))


class _Interrupts(Callback):
    def on_train_batch_end(self, *args: object, **kwargs: object) -> None:
        raise RuntimeError("enough")


def test_two_processes_do_not_train_in_one_directory(tmp_path: Path, tiny_run: TinyRun) -> None:
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(RunError, match="another process trains in"),
    ):
        train(tiny_run(), tmp_path, hardware=Hardware(device="cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told_before_anything_is_written(
    tmp_path: Path, tiny_run: TinyRun
) -> None:
    with pytest.raises(RunError, match="PyTorch finds no GPU"):
        train(tiny_run(), tmp_path / "run", hardware=Hardware(device="cuda"))
    assert not (tmp_path / "run").exists()
