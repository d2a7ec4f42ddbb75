"""The guard: steps that are not finite are undone, and training continues with a lower learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.config import RunConfig
from glowserve_training.data import StepLoader, load_images
from glowserve_training.errors import DivergedError
from glowserve_training.hardware import Hardware
from glowserve_training.run import train
from lightning.pytorch.callbacks import Callback

from tests.training.runs import (
    GradientIsInfinite,
    NoiseIsNaN,
    Recorder,
    TinyRun,
    Uninterrupted,
    equal,
    finite,
    rollbacks_reported,
    rollbacks_saved,
    run,
    weights,
)

Fault = Callable[..., Callback]


@pytest.mark.parametrize("fault", [NoiseIsNaN, GradientIsInfinite])
@pytest.mark.parametrize("step", [7, 8])
def test_a_step_that_is_not_finite_is_undone_and_reported_in_one_line(
    step: int, fault: Fault, tiny_run: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()

    result = run(tiny_run(), tmp_path, [fault(step), recorder])

    assert rollbacks_reported(capfd.readouterr().err) == [
        f"step 8: the loss or its gradient was not finite at step {step}; rolled back to the weights of step 6, "
        "learning rate times 0.5 (rollback 1 of 5)"
    ]
    assert equal(recorder.weights[8], recorder.weights[6])
    assert equal(recorder.ema[8], recorder.ema[6])
    for good, restored in zip(recorder.optimizer[6].values(), recorder.optimizer[8].values(), strict=True):
        assert equal(good.values(), restored.values())
    assert not equal(recorder.weights[9], recorder.weights[8])
    assert list(recorder.weights) == list(range(21))
    assert finite(weights(result).values())
    assert all(map(math.isfinite, load_checkpoint(result).training.metrics.values()))


@pytest.mark.parametrize("fault", [NoiseIsNaN, GradientIsInfinite])
def test_an_update_that_is_not_finite_changes_nothing_even_before_the_guard_checks(
    fault: Fault, tiny_run: TinyRun, tmp_path: Path
) -> None:
    recorder = Recorder()

    run(tiny_run(weight_decay=0.1), tmp_path, [fault(7), recorder])

    assert equal(recorder.weights[7], recorder.weights[6])
    for before, after in zip(recorder.optimizer[6].values(), recorder.optimizer[7].values(), strict=True):
        assert before.keys() == after.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert equal(before.values(), after.values())
    assert finite(recorder.ema[7])
    assert not equal(recorder.weights[6], recorder.weights[5])


def test_after_a_rollback_the_data_continue_and_the_schedule_continues_with_half_the_learning_rate(
    uninterrupted: Uninterrupted, tiny_run: TinyRun, tmp_path: Path
) -> None:
    config, recorder = tiny_run(), Recorder()

    run(config, tmp_path, [NoiseIsNaN(7), GradientIsInfinite(13), recorder])

    rates = uninterrupted.record.rates
    assert [recorder.rates[t] for t in range(1, 9)] == [rates[t] for t in range(1, 9)]
    # Steps 7 and 8 were undone, so that the schedule is where it was after step 6; then steps 13 and 14.
    assert [recorder.rates[t] for t in range(9, 15)] == pytest.approx(
        [rates[t - 2] / 2 for t in range(9, 15)], rel=1e-12
    )
    assert [recorder.rates[t] for t in range(15, 21)] == pytest.approx(
        [rates[t - 4] / 4 for t in range(15, 21)], rel=1e-12
    )
    images = load_images(config.data).train
    loader = StepLoader(images, batch_size=config.batch_size, steps=config.steps, seed=config.seed)
    assert len(recorder.batches) == config.steps
    for step, (batch, noise) in enumerate(loader, 1):
        assert equal(recorder.batches[step][:1], [batch])
        assert step == 7 or equal(recorder.batches[step][1:], [noise])


@pytest.mark.parametrize("step", [22, 34])
def test_a_run_with_a_rollback_is_as_good_as_one_without_within_the_difference_between_seeds(
    step: int, short_run: RunConfig, bits_by_seed: list[float], tmp_path: Path
) -> None:
    result = run(short_run, tmp_path, [NoiseIsNaN(step)])

    bits = load_checkpoint(result).training.metrics["test_bits_per_dim"]
    assert abs(bits - bits_by_seed[0]) < max(bits_by_seed) - min(bits_by_seed)


@pytest.fixture(scope="module")
def short_run(tiny_run: TinyRun) -> RunConfig:
    """60 steps with a learning rate that makes progress in them."""
    return tiny_run(steps=60, learning_rate=1e-2)


@pytest.fixture(scope="module")
def bits_by_seed(
    short_run: RunConfig, tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory
) -> list[float]:
    """Test bits/dim of runs without a fault, with three seeds."""
    results = [
        run(tiny_run(steps=60, learning_rate=1e-2, seed=seed), tmp_path_factory.mktemp("seed"))
        for seed in range(3)
    ]
    return [load_checkpoint(result).training.metrics["test_bits_per_dim"] for result in results]


@pytest.mark.parametrize("checkpoint_activations", [False, True])
@pytest.mark.parametrize("step", [1, 2])
def test_a_fault_before_any_state_was_saved_rolls_back_to_the_initial_weights(
    step: int,
    checkpoint_activations: bool,
    tiny_run: TinyRun,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    recorder = Recorder()
    hardware = Hardware(device="cpu", checkpoint_activations=checkpoint_activations)

    result = train(tiny_run(), tmp_path, hardware=hardware, callbacks=[NoiseIsNaN(step), recorder])

    (line,) = rollbacks_reported(capfd.readouterr().err)
    assert line.startswith(f"step 2: the loss or its gradient was not finite at step {step}; ")
    assert "rolled back to the weights of step 0, learning rate times 0.5" in line
    assert equal(recorder.weights[2], recorder.weights[0])
    # An actnorm's log-scale, which the first batch has initialized.
    assert float(recorder.weights[0][1].abs().min()) > 0.1
    assert finite(weights(result).values())
    assert all(value for name, value in weights(result).items() if name.endswith("initialized"))


def test_a_fault_after_the_last_regular_check_is_undone(
    tiny_run: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()

    result = run(tiny_run(steps=21), tmp_path, [GradientIsInfinite(21), recorder])

    (line,) = rollbacks_reported(capfd.readouterr().err)
    assert line.startswith("step 21: the loss or its gradient was not finite at step 21; ")
    assert "rolled back to the weights of step 20" in line
    assert equal(recorder.weights[21], recorder.weights[20])
    assert equal(load_checkpoint(result).model.parameters(), recorder.ema[20])


@pytest.mark.parametrize(
    ("parametrization", "remedy"),
    [
        ("plain", "parametrization 'qlu' or 'orthogonal', or a learning rate below 0.002"),
        ("lu", "a learning rate below 0.002"),
        ("orthogonal", "a learning rate below 0.002"),
    ],
)
def test_a_lasting_fault_ends_the_run_with_the_fault_and_the_remedy(
    parametrization: str,
    remedy: str,
    tiny_run: TinyRun,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = tiny_run(parametrization=parametrization, max_rollbacks=2, learning_rate=2e-3)
    fault = NoiseIsNaN(*range(1, 21))

    for reported in (2, 0):  # the saved state has 2 rollbacks, so that a resumed run has none left
        with pytest.raises(DivergedError) as raised:
            run(config, tmp_path, [fault])

        assert str(raised.value) == (
            "the loss or its gradient was not finite at step 5, after 2 rollbacks, each of which lowered the learning "
            f"rate. Start again in another run directory with {remedy}"
        )
        assert len(rollbacks_reported(capfd.readouterr().err)) == reported
        assert rollbacks_saved(tmp_path) == 2
        assert not (tmp_path / "model.ckpt").exists()


def test_with_no_rollback_allowed_the_first_fault_ends_the_run(tiny_run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="not finite at step 3, after 0 rollbacks"):
        run(tiny_run(max_rollbacks=0), tmp_path, [NoiseIsNaN(3)])
