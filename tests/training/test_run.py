"""A run: its files, its result, and that the same configuration gives the same weights."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.errors import DataError, DivergedError, RunError
from glowserve_training.hardware import Hardware
from glowserve_training.run import train
from lightning.pytorch.callbacks import Callback

from tests.training.runs import Recorder, TinyRun, Uninterrupted, events, run, same_weights


class UseGlobalGenerators(Callback):
    """Draws from every global random generator at every step."""

    def on_train_batch_start(self, *_: Any) -> None:
        torch.rand(3)
        np.random.random(3)  # noqa: NPY002  # the global generator is meant


# Results


def test_a_run_leaves_a_checkpoint_a_record_a_state_logs_and_a_curve(
    uninterrupted: Uninterrupted, tiny_run: TinyRun
) -> None:
    run_dir = uninterrupted.result.parent

    assert uninterrupted.result == run_dir / "model.ckpt"
    assert sorted(path.name for path in run_dir.glob("[!.]*")) == [
        "curve.png",
        "held_out.npz",
        "last.ckpt",
        "logs",
        "model.ckpt",
        "resume",
        "run.json",
    ]
    assert [path.name for path in (run_dir / "resume").iterdir()] == ["last.ckpt"]
    record = json.loads((run_dir / "run.json").read_text())
    assert record["steps"] == 20
    assert record["model"]["width"] == 4
    assert record["data"]["data"] == tiny_run().data.data
    assert record["max_returns"] == 5  # the key of version 0.1.0


def test_training_makes_images_more_likely(checkpoint: Path) -> None:
    validation = [value for _, value in events(checkpoint.parent)["validation_bits_per_dim"]]
    metrics = load_checkpoint(checkpoint).training.metrics

    assert validation[-1] < validation[0] - 0.2
    assert validation[-1] == pytest.approx(metrics["validation_bits_per_dim"], rel=1e-3)
    assert metrics["test_bits_per_dim"] < 3.5  # a uniform distribution has 4


def test_tensorboard_has_the_loss_the_validation_and_the_learning_rate(uninterrupted: Uninterrupted) -> None:
    shown = events(uninterrupted.result.parent)

    assert {
        "train_bits_per_dim",
        "validation_bits_per_dim",
        "lr-AdamW/pg1",
        "condition",
        "coupling_scale/level1/smallest",
    } <= shown.keys()
    assert len(shown["validation_bits_per_dim"]) == 10  # after every second of 20 steps
    assert all(math.isfinite(value) for values in shown.values() for _, value in values)


# Reproducibility


def test_the_same_seed_gives_the_same_weights_bit_for_bit(
    uninterrupted: Uninterrupted, tiny_run: TinyRun, tmp_path: Path
) -> None:
    torch.manual_seed(99)  # the state of the generators before the run does not matter

    result = run(tiny_run(), tmp_path)

    assert same_weights(result, uninterrupted.result)
    assert load_checkpoint(result).training == load_checkpoint(uninterrupted.result).training


def test_no_global_generator_is_used_after_initialization(
    uninterrupted: Uninterrupted, tiny_run: TinyRun, tmp_path: Path
) -> None:
    assert same_weights(run(tiny_run(), tmp_path, [UseGlobalGenerators()]), uninterrupted.result)


def test_another_seed_gives_other_weights(
    uninterrupted: Uninterrupted, tiny_run: TinyRun, tmp_path: Path
) -> None:
    assert not same_weights(run(tiny_run(seed=1), tmp_path), uninterrupted.result)


# Finished runs


def test_a_finished_run_is_not_run_again_nor_is_its_data_read(tiny_run: TinyRun, tmp_path: Path) -> None:
    data = tmp_path / "digits.npz"
    data.write_bytes(Path(tiny_run().data.data).read_bytes())
    config = replace(tiny_run(steps=2), data=replace(tiny_run().data, data=str(data)))
    result = run(config, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    data.unlink()
    recorder = Recorder()

    assert run(config, tmp_path / "run", [recorder]) == result
    assert recorder.weights == {}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


# Divergence, and edge cases


def test_a_run_that_diverges_is_reported_and_leaves_no_model(tiny_run: TinyRun, tmp_path: Path) -> None:
    config = tiny_run(learning_rate=1e6)

    for _ in range(2):  # resuming does not help
        with pytest.raises(
            DivergedError, match=r"not finite at step \d+, after .* a learning rate below 1e\+06"
        ):
            run(config, tmp_path)
        assert not (tmp_path / "model.ckpt").exists()


def test_a_model_that_is_not_finite_on_held_out_images_is_not_saved(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    class Overflow(Callback):
        """Makes the last level overflow after the last check of the guard."""

        @torch.no_grad()
        def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
            for callback in trainer.callbacks:
                for weight in getattr(callback, "weights", []):
                    weight.fill_(1e30)

    with pytest.raises(DivergedError, match=r"has inf bits/dim on validation images: .* learning rate below"):
        run(tiny_run(steps=2), tmp_path, [Overflow()])
    assert not (tmp_path / "model.ckpt").exists()


def test_a_batch_of_one_can_be_trained_on(tiny_run: TinyRun, tmp_path: Path) -> None:
    # At the third level an image has one position, so that its channels are constant over the first batch.
    result = run(tiny_run(levels=3, steps_per_level=6, batch_size=1, steps=10), tmp_path)

    assert load_checkpoint(result).training.metrics["test_bits_per_dim"] < 100


def test_the_largest_seed_is_accepted(tiny_run: TinyRun, tmp_path: Path) -> None:
    assert run(tiny_run(steps=1, seed=2**63 - 1), tmp_path).exists()


def test_unreadable_data_does_not_bind_the_directory(tiny_run: TinyRun, tmp_path: Path) -> None:
    mistyped = replace(tiny_run(steps=2), data=replace(tiny_run().data, data="/no/such/folder"))

    with pytest.raises(DataError, match="no such file"):
        run(mistyped, tmp_path / "run")

    assert run(tiny_run(steps=2), tmp_path / "run").exists()


# Hardware


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported_before_anything_is_written(tmp_path: Path, tiny_run: TinyRun) -> None:
    with pytest.raises(RunError, match="PyTorch finds no GPU"):
        train(tiny_run(), tmp_path / "run", hardware=Hardware(device="cuda"))
    assert not (tmp_path / "run").exists()


def test_a_batch_that_the_processes_cannot_share_equally_is_refused(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    with pytest.raises(
        RunError, match="batch_size is 15, which 2 processes cannot share equally; make it a multiple of 2"
    ):
        train(tiny_run(batch_size=15), tmp_path / "run", hardware=Hardware(device="cpu", devices=2))
    assert not (tmp_path / "run").exists()
