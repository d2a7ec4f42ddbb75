"""What a run keeps: the best EMA on validation images, beside the last; and when it ends early."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glowserve_training import validation
from glowserve_training.checkpoint import TrainingRecord, load_checkpoint
from glowserve_training.data import load_images
from glowserve_training.directory import RunDirectory
from glowserve_training.evaluation import EvaluatedGlow, measure_likelihood
from glowserve_training.model import Glow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from tests.training.runs import (
    Interrupt,
    NoiseIsNaN,
    Recorder,
    SpoilEMA,
    TinyRun,
    Uninterrupted,
    copies,
    equal,
    events,
    run,
    same_weights,
)


def parameters(path: Path) -> list[Tensor]:
    return copies(load_checkpoint(path).model.parameters())


def record(path: Path) -> TrainingRecord:
    return load_checkpoint(path).training


@pytest.fixture(scope="module")
def spoiled(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """A run of 20 steps that is validated after every second, and worse after the twelfth."""
    recorder = Recorder()
    path = tmp_path_factory.mktemp("spoiled") / "run"
    return Uninterrupted(run(tiny_run(patience=0), path, [SpoilEMA(12), recorder]), recorder)


def test_the_best_weights_are_the_result_and_the_last_are_beside_it(spoiled: Uninterrupted) -> None:
    last = spoiled.result.parent / "last.ckpt"

    assert equal(parameters(spoiled.result), spoiled.record.ema[12])
    assert equal(parameters(last), spoiled.record.ema[20])
    for path, step in ((spoiled.result, 12), (last, 20)):
        assert (record(path).steps, record(path).best_step, record(path).weights_step) == (20, 12, step)


def test_the_figures_of_each_checkpoint_are_those_of_its_weights(
    spoiled: Uninterrupted, tiny_run: TinyRun
) -> None:
    images, last = load_images(tiny_run().data), spoiled.result.parent / "last.ckpt"

    for path in (spoiled.result, last):
        model = EvaluatedGlow(load_checkpoint(path).model)
        for name in ("validation", "test"):
            found = measure_likelihood(model, getattr(images, name)).bits_per_dim
            assert record(path).metrics[f"{name}_bits_per_dim"] == found
    shown = dict(events(spoiled.result.parent)["validation_bits_per_dim"])
    assert min(shown, key=shown.__getitem__) == 12
    assert shown[12] == pytest.approx(record(spoiled.result).metrics["validation_bits_per_dim"], rel=1e-5)
    assert shown[20] == pytest.approx(record(last).metrics["validation_bits_per_dim"], rel=1e-5)


def test_where_the_last_weights_are_the_best_both_files_have_them(uninterrupted: Uninterrupted) -> None:
    last = uninterrupted.result.parent / "last.ckpt"

    assert same_weights(uninterrupted.result, last)
    assert record(uninterrupted.result) == record(last)
    assert record(last).best_step == 20


def test_a_last_step_that_is_no_multiple_of_the_interval_is_validated(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    recorder = Recorder()
    result = run(tiny_run(steps=21), tmp_path, [recorder])

    assert events(tmp_path)["validation_bits_per_dim"][-1][0] == record(result).best_step == 21
    assert equal(parameters(result), recorder.ema[21])


def test_weights_that_are_not_finite_are_never_the_best(tiny_run: TinyRun, tmp_path: Path) -> None:
    recorder = Recorder()

    result = run(tiny_run(patience=0), tmp_path, [SpoilEMA(10, math.nan), recorder])

    assert record(result).best_step == 10
    assert equal(parameters(result), recorder.ema[10])
    assert not math.isfinite(record(tmp_path / "last.ckpt").metrics["test_bits_per_dim"])


@pytest.mark.parametrize("bits", [math.inf, -math.inf, math.nan])
def test_without_a_finite_validation_the_last_weights_are_the_result(
    bits: float,
    uninterrupted: Uninterrupted,
    tiny_run: TinyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(validation, "_bits_per_dim", lambda *_: bits)

    result = run(tiny_run(patience=0), tmp_path)

    assert same_weights(result, uninterrupted.result)
    assert record(result).best_step == 20


def test_a_rollback_leaves_the_best_as_it_is(tiny_run: TinyRun, tmp_path: Path) -> None:
    recorder = Recorder()

    result = run(tiny_run(patience=0), tmp_path, [SpoilEMA(12), NoiseIsNaN(15), recorder])

    assert record(result).best_step == 12
    assert equal(parameters(result), recorder.ema[12])


# Patience


@pytest.fixture(scope="module")
def stopped(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """The same run with a patience of two validations."""
    recorder = Recorder()
    path = tmp_path_factory.mktemp("stopped") / "run"
    return Uninterrupted(run(tiny_run(patience=2), path, [SpoilEMA(12), recorder]), recorder)


def test_training_ends_after_as_many_validations_without_improvement(
    stopped: Uninterrupted, spoiled: Uninterrupted
) -> None:
    assert max(stopped.record.weights) == 16
    assert (record(stopped.result).steps, record(stopped.result).images_seen) == (16, 16 * 16)
    assert record(stopped.result).best_step == 12
    assert same_weights(stopped.result, spoiled.result)
    assert equal(parameters(stopped.result.parent / "last.ckpt"), stopped.record.ema[16])


def test_it_is_said_why_training_ended(
    tiny_run: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tiny_run(patience=2), tmp_path, [SpoilEMA(12)])

    assert (
        "training ended at step 16 of 20: the best validation was at step 12, and patience ran out\n"
        in capfd.readouterr().err
    )


def test_a_run_whose_patience_ran_out_has_finished(
    stopped: Uninterrupted, tiny_run: TinyRun, tmp_path: Path
) -> None:
    recorder = Recorder()

    assert run(tiny_run(patience=2), stopped.result.parent, [recorder]) == stopped.result
    assert recorder.weights == {}


@pytest.mark.parametrize("step", [5, 12, 13, 14, 15, 16])
@pytest.mark.parametrize("patience", [0, 2])
def test_an_interrupted_run_keeps_the_same_weights_and_ends_at_the_same_step(
    patience: int,
    step: int,
    spoiled: Uninterrupted,
    stopped: Uninterrupted,
    tiny_run: TinyRun,
    tmp_path: Path,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tiny_run(patience=patience), tmp_path, [SpoilEMA(12), Interrupt(step)])

    result = run(tiny_run(patience=patience), tmp_path, [SpoilEMA(12)])

    expected = stopped if patience else spoiled
    assert record(result) == record(expected.result)
    assert same_weights(result, expected.result)
    assert same_weights(tmp_path / "last.ckpt", expected.result.parent / "last.ckpt")


def test_a_run_that_was_killed_after_its_early_end_only_writes_its_result(
    stopped: Uninterrupted, tiny_run: TinyRun, tmp_path: Path
) -> None:
    config = tiny_run(patience=2)
    run(config, tmp_path, [SpoilEMA(12)]).unlink()
    recorder = Recorder()

    result = run(config, tmp_path, [recorder])

    assert recorder.weights == {}
    assert record(result) == record(stopped.result)
    assert same_weights(result, stopped.result)


def test_a_run_that_was_killed_between_its_two_checkpoints_writes_both(
    spoiled: Uninterrupted, tiny_run: TinyRun, tmp_path: Path
) -> None:
    config = tiny_run(patience=0)
    run(config, tmp_path, [SpoilEMA(12)])
    (tmp_path / "last.ckpt").unlink()
    record_file = tmp_path / "run.json"
    record_file.write_text(json.dumps(json.loads(record_file.read_text()) | {"finished": None}))
    assert not RunDirectory(tmp_path).is_finished(config)

    run(config, tmp_path)

    assert same_weights(tmp_path / "last.ckpt", spoiled.result.parent / "last.ckpt")
    assert RunDirectory(tmp_path).is_finished(config)


# What TensorBoard shows


def test_tensorboard_has_samples_of_the_same_latents_at_each_validation(uninterrupted: Uninterrupted) -> None:
    log = EventAccumulator(str(uninterrupted.result.parent / "logs"), {"images": 0}).Reload()

    shown = log.Images("samples")

    assert [image.step for image in shown] == list(range(2, 21, 2))
    assert {image.width * image.height for image in shown} == {16 * 8 * 8}


@pytest.mark.parametrize("error", [RuntimeError("singular"), torch.linalg.LinAlgError("singular")])
def test_samples_that_cannot_be_computed_do_not_end_a_run(
    error: Exception,
    uninterrupted: Uninterrupted,
    tiny_run: TinyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> Tensor:
        raise error

    monkeypatch.setattr(Glow, "decode", fail)

    assert same_weights(run(tiny_run(), tmp_path), uninterrupted.result)


def test_samples_that_are_not_finite_do_not_end_a_run(tiny_run: TinyRun, tmp_path: Path) -> None:
    run(tiny_run(patience=0), tmp_path, [SpoilEMA(10, math.nan)])

    log = EventAccumulator(str(tmp_path / "logs"), {"images": 0}).Reload()
    assert len(log.Images("samples")) == 10


# Which images choose


def test_calibration_images_change_nothing_but_their_digest(
    uninterrupted: Uninterrupted, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import glowserve_training.run as module

    def load_others(*arguments: Any, **keywords: Any) -> Any:
        images = load_images(*arguments, **keywords)
        images.calibration[:] = 255 - images.calibration
        return images

    monkeypatch.setattr(module, "load_images", load_others)

    result = run(tiny_run(), tmp_path)

    assert same_weights(result, uninterrupted.result)
    assert record(result).metrics == record(uninterrupted.result).metrics
    assert record(result).held_out_digest != record(uninterrupted.result).held_out_digest
    assert events(tmp_path) == events(uninterrupted.result.parent)


def test_other_validation_images_change_what_is_kept(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import glowserve_training.run as module

    def load_noise(*arguments: Any, **keywords: Any) -> Any:
        images = load_images(*arguments, **keywords)
        images.validation[:] = np.random.default_rng(0).integers(0, 256, images.validation.shape)
        return images

    monkeypatch.setattr(module, "load_images", load_noise)

    # The better the model knows digits, the less likely is noise.
    assert record(run(tiny_run(learning_rate=1e-2), tmp_path)).best_step != 20
