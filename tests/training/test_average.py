"""The moving average of the weights: what is validated, and what is left at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.config import RunConfig
from glowserve_training.data import evaluation_batches, load_images
from glowserve_training.hardware import Hardware
from glowserve_training.model import Glow
from glowserve.likelihood import bits_per_dim
from glowserve_training.run import train
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

TinyRun = Callable[..., RunConfig]


class Recorder(Callback):
    """The weights before the first step and after each, and those that validation sees."""

    def __init__(self) -> None:
        self.weights: dict[int, list[Tensor]] = {}
        self.validated: dict[int, list[Tensor]] = {}

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        self.weights.setdefault(trainer.global_step, copied(module))

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        self.weights[trainer.global_step] = copied(module)

    def on_validation_batch_start(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        self.validated[trainer.global_step] = copied(module)


class Killed(Callback):
    """Ends a run after a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def run(config: RunConfig, run_dir: Path, callbacks: Sequence[Callback] = ()) -> Path:
    return train(config, run_dir, hardware=Hardware(device="cpu"), callbacks=callbacks)


def copied(module: torch.nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def result_of(path: Path) -> list[Tensor]:
    return copied(load_checkpoint(path).model)


def equal(one: Iterable[Tensor], other: Iterable[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def averages(weights: dict[int, list[Tensor]], decay: float) -> dict[int, list[Tensor]]:
    """By the definition, in float64: at step t, d of the average stays, d = min(decay, (1 + t) / (10 + t))."""
    average = [weight.double() for weight in weights[0]]
    found = {}
    for step in range(1, len(weights)):
        d = min(decay, (1 + step) / (10 + step))
        average = [d * a + (1 - d) * w.double() for a, w in zip(average, weights[step], strict=True)]
        found[step] = average
    return found


def assert_close(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-6)


# (1 + t) / (10 + t) is 0.83 at the last step: the first of these decays is never reached, the second at step 8.
@pytest.mark.parametrize("decay", [0.999, 0.5])
def test_the_average_is_what_is_validated_and_what_is_left(
    decay: float, tiny_run: TinyRun, tmp_path: Path
) -> None:
    recorder = Recorder()

    result = run(tiny_run(average_decay=decay, schedule="constant", learning_rate=2e-3), tmp_path, [recorder])

    expected = averages(recorder.weights, decay)
    assert list(recorder.validated) == list(range(2, 43, 2))
    for step, validated in recorder.validated.items():
        assert_close(validated, expected[step])
    assert_close(result_of(result), expected[42])
    apart = [float((a - w).abs().max()) for a, w in zip(expected[42], recorder.weights[42], strict=True)]
    assert max(apart) > 1e-4  # the last weights are not as good an answer


def test_the_bits_in_tensorboard_are_those_of_the_average(tiny_run: TinyRun, tmp_path: Path) -> None:
    config, recorder = tiny_run(learning_rate=0.05, schedule="constant"), Recorder()

    run(config, tmp_path, [recorder])

    log = EventAccumulator(str(tmp_path / "logs"))
    log.Reload()
    shown = {event.step: event.value for event in log.Scalars("validation_bits_per_dim")}
    last = shown[max(shown)]
    (batch,) = evaluation_batches(load_images(config.data).validation, 64)

    def bits(weights: list[Tensor]) -> float:
        model = load_checkpoint(tmp_path / "model.ckpt").model
        return float(mean_bits(model, weights, batch))

    average = [weight.float() for weight in averages(recorder.weights, config.average_decay)[42]]
    assert last == pytest.approx(bits(average), abs=1e-4)
    assert abs(last - bits(recorder.weights[42])) > 1e-3


@torch.no_grad()
def mean_bits(model: Glow, weights: list[Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        parameter.copy_(weight)
    return bits_per_dim(model.log_prob(*batch), model.config.dimensions).mean()


def test_without_decay_the_last_weights_are_left(tiny_run: TinyRun, tmp_path: Path) -> None:
    recorder = Recorder()

    result = run(tiny_run(average_decay=0.0), tmp_path, [recorder])

    assert equal(result_of(result), recorder.weights[42])
    assert all(equal(validated, recorder.weights[step]) for step, validated in recorder.validated.items())


def test_training_itself_does_not_depend_on_the_average(tiny_run: TinyRun, tmp_path: Path) -> None:
    recorders = {decay: Recorder() for decay in (0.0, 0.9)}

    for decay, recorder in recorders.items():
        run(tiny_run(average_decay=decay), tmp_path / str(decay), [recorder])

    for step in range(43):
        assert equal(recorders[0.0].weights[step], recorders[0.9].weights[step])


@pytest.mark.parametrize(("step", "first_validated"), [(5, 6), (30, 30)])
def test_a_resumed_run_has_the_average_of_an_undisturbed_one(
    step: int, first_validated: int, tiny_run: TinyRun, tmp_path: Path
) -> None:
    expected, resumed = Recorder(), Recorder()
    undisturbed = run(tiny_run(average_decay=0.9), tmp_path / "undisturbed", [expected])
    with pytest.raises(KeyboardInterrupt):
        run(tiny_run(average_decay=0.9), tmp_path / "killed", [Killed(step)])

    result = run(tiny_run(average_decay=0.9), tmp_path / "killed", [resumed])

    assert equal(result_of(result), result_of(undisturbed))
    assert min(resumed.validated) == first_validated
    for at, validated in resumed.validated.items():
        assert equal(validated, expected.validated[at])
