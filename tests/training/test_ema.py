"""The EMA of the weights: what is validated, and the result of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.data import evaluation_batches, load_images
from glowserve_training.model import Glow
from torch import Tensor

from glowserve.likelihood import bits_per_dim
from tests.training.runs import Interrupt, Recorder, TinyRun, Uninterrupted, copies, equal, events, run


def result_of(path: Path) -> list[Tensor]:
    return copies(load_checkpoint(path).model.parameters())


def ema_by_definition(weights: dict[int, list[Tensor]], decay: float) -> dict[int, list[Tensor]]:
    """By step, in float64: the decay at step t is min(decay, (1 + t) / (10 + t))."""
    average = [weight.double() for weight in weights[0]]
    averages = {}
    for step in range(1, len(weights)):
        d = min(decay, (1 + step) / (10 + step))
        average = [d * a + (1 - d) * w.double() for a, w in zip(average, weights[step], strict=True)]
        averages[step] = average
    return averages


def assert_close(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-6)


# (1 + t) / (10 + t) is 0.7 at the last step: the first decay is never reached, the second at step 8.
@pytest.mark.parametrize("decay", [0.999, 0.5])
def test_the_ema_is_validated_and_is_the_result(decay: float, tiny_run: TinyRun, tmp_path: Path) -> None:
    recorder = Recorder()

    result = run(tiny_run(average_decay=decay, schedule="constant", learning_rate=2e-3), tmp_path, [recorder])

    expected = ema_by_definition(recorder.weights, decay)
    assert list(recorder.validated) == list(range(2, 21, 2))
    for step, validated in recorder.validated.items():
        assert_close(validated, expected[step])
    assert_close(result_of(result), expected[20])
    differences = [
        float((a - w).abs().max()) for a, w in zip(expected[20], recorder.weights[20], strict=True)
    ]
    assert max(differences) > 1e-4  # the last weights would not pass as the EMA


def test_tensorboard_has_the_bits_of_the_ema(tiny_run: TinyRun, tmp_path: Path) -> None:
    config, recorder = tiny_run(learning_rate=0.05, schedule="constant", patience=0), Recorder()

    run(config, tmp_path, [recorder])

    _, last = events(tmp_path)["validation_bits_per_dim"][-1]
    (batch,) = evaluation_batches(load_images(config.data).validation, 64)
    model = load_checkpoint(tmp_path / "last.ckpt").model
    ema = [weight.float() for weight in ema_by_definition(recorder.weights, config.average_decay)[20]]
    assert last == pytest.approx(mean_bits(model, ema, batch), abs=1e-4)
    assert abs(last - mean_bits(model, recorder.weights[20], batch)) > 1e-3


@torch.no_grad()
def mean_bits(model: Glow, weights: list[Tensor], batch: tuple[Tensor, Tensor]) -> float:
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        parameter.copy_(weight)
    return float(bits_per_dim(model.log_prob(*batch), model.config.dimensions).mean())


@pytest.fixture(scope="module")
def without_ema(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """A run with decay 0."""
    recorder = Recorder()
    return run(tiny_run(average_decay=0.0), tmp_path_factory.mktemp("without-ema"), [recorder]), recorder


def test_with_decay_0_the_last_weights_are_the_result(without_ema: tuple[Path, Recorder]) -> None:
    result, recorder = without_ema

    assert equal(result_of(result), recorder.weights[20])
    assert all(equal(validated, recorder.weights[step]) for step, validated in recorder.validated.items())


def test_the_trained_weights_do_not_depend_on_the_ema(
    without_ema: tuple[Path, Recorder], uninterrupted: Uninterrupted
) -> None:
    _, recorder = without_ema

    assert uninterrupted.record.weights.keys() == set(range(21))
    for step, weights in uninterrupted.record.weights.items():
        assert equal(recorder.weights[step], weights)


@pytest.mark.parametrize(("step", "first_validated"), [(5, 6), (14, 14)])
def test_a_resumed_run_has_the_ema_of_an_uninterrupted_one(
    step: int, first_validated: int, uninterrupted: Uninterrupted, tiny_run: TinyRun, tmp_path: Path
) -> None:
    resumed = Recorder()
    with pytest.raises(KeyboardInterrupt):
        run(tiny_run(), tmp_path, [Interrupt(step)])

    result = run(tiny_run(), tmp_path, [resumed])

    assert equal(result_of(result), result_of(uninterrupted.result))
    assert min(resumed.validated) == first_validated
    for at, validated in resumed.validated.items():
        assert equal(validated, uninterrupted.record.validated[at])
