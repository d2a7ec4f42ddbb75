"""The watch over training: what is not finite, or cannot be inverted, is undone and told of."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.config import RunConfig
from glowserve_training.data import StepLoader, load_images
from glowserve_training.ema import EMA
from glowserve_training.errors import DivergedError
from glowserve_training.hardware import Hardware
from glowserve_training.layers import AffineCoupling
from glowserve_training.model import Glow
from glowserve_training.run import train
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

TinyRun = Callable[..., RunConfig]
Faults = Callable[..., Callback]


class NoiseIsNaN(Callback):
    """The noise of the batches of some steps is not a number."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, _: int) -> None:
        if trainer.global_step + 1 in self.steps:
            batch[1].fill_(math.nan)


class GradientIsInfinite(Callback):
    """One number of the gradient of some steps is infinite, with a loss that is finite."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_after_backward(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.global_step + 1 in self.steps:
            gradient = next(p.grad for p in module.parameters() if p.grad is not None)
            gradient.view(-1)[0] = math.inf


class MatrixIs(Callback):
    """The update of one step leaves the matrix of level2.step1 with this condition number."""

    def __init__(self, step: int, condition: float) -> None:
        self.step, self.condition = step, condition

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        matrix = module.model.levels[1].steps[0].conv1x1.matrix

        @torch.no_grad()
        def deform(*_: Any) -> None:
            if trainer.global_step + 1 != self.step:
                return
            if math.isinf(self.condition):
                matrix.zero_()[0] = 1  # of rank 1, and in float32, too
                return
            u, s, vh = torch.linalg.svd(matrix)
            s[-1] = s[0] / self.condition
            matrix.copy_(u @ torch.diag(s) @ vh)

        trainer.optimizers[0].register_step_post_hook(deform)


class Recorder(Callback):
    """Writes down what each step is made of, and what it leaves; the guard has looked by then."""

    def __init__(self) -> None:
        self.rates: dict[int, float] = {}
        self.batches: dict[int, tuple[Tensor, Tensor]] = {}
        self.weights: dict[int, list[Tensor]] = {}
        self.average: dict[int, list[Tensor]] = {}
        self.optimizer: dict[int, dict[int, dict[str, Tensor]]] = {}

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, _: int) -> None:
        step = trainer.global_step + 1
        self.rates[step] = trainer.optimizers[0].param_groups[0]["lr"]
        self.batches[step] = (batch[0].clone(), batch[1].clone())

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        step = trainer.global_step
        average = next(callback for callback in trainer.callbacks if isinstance(callback, EMA))
        self.weights[step] = [p.detach().clone() for p in module.parameters()]
        self.average[step] = [weight.clone() for weight in average.weights]
        self.optimizer[step] = copy.deepcopy(trainer.optimizers[0].state_dict()["state"])


class Start(Callback):
    """The weights that the first step begins with."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step == 0:
            self.weights = [p.detach().clone() for p in module.parameters()]


class Killed(Callback):
    """Ends a run after a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def run(config: RunConfig, run_dir: Path, callbacks: Sequence[Callback] = ()) -> Path:
    return train(config, run_dir, hardware=Hardware(device="cpu"), callbacks=callbacks)


def weights(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path).model.state_dict()


def equal(one: Iterable[Tensor], other: Iterable[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def returns_told(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if "back to the weights" in line]


def returns_saved(run_dir: Path) -> int:
    callbacks = torch.load(run_dir / "resume" / "last.ckpt", weights_only=True)["callbacks"]
    return int(next(state for name, state in callbacks.items() if "Guard" in name)["returns"])


@pytest.fixture(scope="module")
def tiny_run(tiny_run: TinyRun) -> TinyRun:
    """With what the numbers below depend on, whatever a preset says."""

    def configure(**changes: object) -> RunConfig:
        return tiny_run(**({"learning_rate": 2e-3, "coupling_actnorm": False} | changes))

    return configure


@dataclass(frozen=True)
class Undisturbed:
    """A tiny run that nothing happened to: 42 steps, at every other of which the guard looks."""

    result: Path
    record: Recorder


@pytest.fixture(scope="module")
def undisturbed(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    recorder = Recorder()
    return Undisturbed(run(tiny_run(), tmp_path_factory.mktemp("undisturbed"), [recorder]), recorder)


# What is not finite


@pytest.mark.parametrize("fault", [NoiseIsNaN, GradientIsInfinite])
@pytest.mark.parametrize("step", [7, 8])
def test_a_step_that_is_not_finite_is_undone_and_told_of_in_one_line(
    step: int, fault: Faults, tiny_run: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()

    result = run(tiny_run(), tmp_path, [fault(step), recorder])

    assert returns_told(capfd.readouterr().err) == [
        f"step 8: the loss or its gradient was not finite at step {step}; back to the weights of step 6, "
        "learning rate times 0.5 (return 1 of 5)"
    ]
    assert equal(recorder.weights[8], recorder.weights[6])
    assert equal(recorder.average[8], recorder.average[6])
    for good, restored in zip(recorder.optimizer[6].values(), recorder.optimizer[8].values(), strict=True):
        assert equal(good.values(), restored.values())
    assert not equal(recorder.weights[9], recorder.weights[8])
    assert list(recorder.weights) == list(range(1, 43))
    assert finite(weights(result).values())
    assert all(map(math.isfinite, load_checkpoint(result).training.metrics.values()))


@pytest.mark.parametrize("fault", [NoiseIsNaN, GradientIsInfinite])
def test_an_update_that_is_not_finite_changes_nothing_before_the_guard_looks(
    fault: Faults, tiny_run: TinyRun, tmp_path: Path
) -> None:
    recorder = Recorder()

    run(tiny_run(weight_decay=0.1), tmp_path, [fault(7), recorder])

    assert equal(recorder.weights[7], recorder.weights[6])
    for before, after in zip(recorder.optimizer[6].values(), recorder.optimizer[7].values(), strict=True):
        assert before.keys() == after.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert equal(before.values(), after.values())
    assert finite(recorder.average[7])
    assert not equal(recorder.weights[6], recorder.weights[5])


def test_the_learning_rate_is_halved_and_the_schedule_goes_on_from_the_state_gone_back_to(
    undisturbed: Undisturbed, tiny_run: TinyRun, tmp_path: Path
) -> None:
    recorder = Recorder()

    run(tiny_run(), tmp_path, [NoiseIsNaN(7, 21), recorder])

    rates = undisturbed.record.rates
    assert [recorder.rates[t] for t in range(1, 9)] == [rates[t] for t in range(1, 9)]
    # Steps 7 and 8 were undone, and the schedule is where it was after step 6; then steps 21 and 22, too.
    assert [recorder.rates[t] for t in range(9, 23)] == pytest.approx(
        [rates[t - 2] / 2 for t in range(9, 23)], rel=1e-12
    )
    assert [recorder.rates[t] for t in range(23, 43)] == pytest.approx(
        [rates[t - 4] / 4 for t in range(23, 43)], rel=1e-12
    )


def test_the_data_go_on_after_a_return(tiny_run: TinyRun, tmp_path: Path) -> None:
    config, recorder = tiny_run(), Recorder()

    run(config, tmp_path, [GradientIsInfinite(7, 16), recorder])

    images = load_images(config.data).train
    loader = StepLoader(images, batch_size=config.batch_size, steps=config.steps, seed=config.seed)
    for step, expected in enumerate(loader, 1):
        assert equal(recorder.batches[step], expected)
    assert len(recorder.batches) == config.steps


@pytest.mark.parametrize("step", [34, 51])
def test_a_run_that_went_back_is_as_good_as_an_undisturbed_one_within_the_difference_between_seeds(
    step: int, quickly: RunConfig, bits_by_seed: list[float], tmp_path: Path
) -> None:
    result = run(quickly, tmp_path, [NoiseIsNaN(step)])

    bits = load_checkpoint(result).training.metrics["test_bits_per_dim"]
    assert abs(bits - bits_by_seed[0]) < max(bits_by_seed) - min(bits_by_seed)


@pytest.fixture(scope="module")
def quickly(tiny_run: TinyRun) -> RunConfig:
    """100 steps with a learning rate at which they get somewhere; the guard looks at every fifth."""
    return tiny_run(steps=100, learning_rate=1e-2)


@pytest.fixture(scope="module")
def bits_by_seed(
    quickly: RunConfig, tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory
) -> list[float]:
    """Test bits/dim of undisturbed runs with three seeds: 0.09 between the best and the worst."""
    results = [
        run(tiny_run(steps=100, learning_rate=1e-2, seed=seed), tmp_path_factory.mktemp("seed"))
        for seed in range(3)
    ]
    return [load_checkpoint(result).training.metrics["test_bits_per_dim"] for result in results]


# What cannot be inverted


@pytest.mark.parametrize(
    ("step", "condition", "cause"),
    [
        (8, math.inf, "the 1x1 convolution of level2.step1 is singular"),
        (8, 1e5, r"the 1x1 convolution of level2.step1 has condition number (9.99e\+04|1e\+05), over 10000"),
        # At step 8 the loss is infinite and nothing is updated, and the matrix is what it was made at step 7.
        (
            7,
            math.inf,
            "the 1x1 convolution of level2.step1 is singular and the loss or its gradient was not finite at step 8",
        ),
    ],
)
def test_a_matrix_that_cannot_be_inverted_is_undone_and_told_of_by_its_layer(
    step: int,
    condition: float,
    cause: str,
    tiny_run: TinyRun,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    recorder = Recorder()

    result = run(tiny_run(parametrization="plain"), tmp_path, [MatrixIs(step, condition), recorder])

    (line,) = returns_told(capfd.readouterr().err)
    assert re.fullmatch(
        rf"step 8: {cause}; back to the weights of step 6, learning rate times 0\.5 \(return 1 of 5\)", line
    )
    assert equal(recorder.weights[8], recorder.weights[6])
    assert recorder.rates[9] == pytest.approx(recorder.rates[7] / 2)
    assert finite(weights(result).values())
    matrices = [level.steps[0].conv1x1.weight().detach() for level in load_checkpoint(result).model.levels]
    assert max(float(torch.linalg.cond(matrix)) for matrix in matrices) < 100


def test_a_matrix_within_the_condition_limit_is_trained_on_with(
    tiny_run: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tiny_run(parametrization="plain", condition_limit=2e5), tmp_path, [MatrixIs(8, 1e5)])

    assert returns_told(capfd.readouterr().err) == []


# The first steps and the last


@pytest.mark.parametrize("checkpoint_activations", [False, True])
@pytest.mark.parametrize("step", [1, 2])
def test_a_fault_before_any_state_was_saved_goes_back_to_the_start(
    step: int,
    checkpoint_activations: bool,
    tiny_run: TinyRun,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    start, recorder = Start(), Recorder()
    hardware = Hardware(device="cpu", checkpoint_activations=checkpoint_activations)

    result = train(
        tiny_run(coupling_actnorm=True),
        tmp_path,
        hardware=hardware,
        callbacks=[NoiseIsNaN(step), start, recorder],
    )

    (line,) = returns_told(capfd.readouterr().err)
    assert line.startswith(f"step 2: the loss or its gradient was not finite at step {step}; ")
    assert "back to the weights of step 0, learning rate times 0.5" in line
    assert equal(recorder.weights[2], start.weights)
    assert (
        float(start.weights[1].abs().min()) > 0.1
    )  # a log-scale of an actnorm, which the first batch has set
    assert finite(weights(result).values())
    assert all(value for name, value in weights(result).items() if name.endswith("initialized"))


def test_a_fault_in_a_last_window_that_is_shorter_is_undone(
    tiny_run: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()

    result = run(tiny_run(steps=43), tmp_path, [GradientIsInfinite(43), recorder])

    (line,) = returns_told(capfd.readouterr().err)
    assert line.startswith("step 43: the loss or its gradient was not finite at step 43; ")
    assert "back to the weights of step 42" in line
    assert equal(recorder.weights[43], recorder.weights[42])
    assert equal(load_checkpoint(result).model.parameters(), recorder.average[42])


# Again and again


@pytest.mark.parametrize(
    ("parametrization", "remedy"),
    [
        ("plain", "parametrization 'lu' or 'orthogonal', or a learning rate below 0.002"),
        ("lu", "a learning rate below 0.002"),
        ("orthogonal", "a learning rate below 0.002"),
    ],
)
def test_a_fault_that_does_not_go_away_ends_the_run_with_the_fault_and_the_remedy(
    parametrization: str,
    remedy: str,
    tiny_run: TinyRun,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = tiny_run(parametrization=parametrization, max_rollbacks=2)
    fault = NoiseIsNaN(*range(1, 43))

    for returns in (2, 0):  # the state tells the same command that training went back twice already
        with pytest.raises(DivergedError) as raised:
            run(config, tmp_path, [fault])

        assert str(raised.value) == (
            "the loss or its gradient was not finite at step 5, after training had gone back 2 times and lowered "
            f"the learning rate each time. Start again in another run directory with {remedy}"
        )
        assert len(returns_told(capfd.readouterr().err)) == returns
        assert returns_saved(tmp_path) == 2
        assert not (tmp_path / "model.ckpt").exists()


def test_without_any_return_the_first_fault_ends_the_run(tiny_run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="not finite at step 3, after training had gone back 0 times"):
        run(tiny_run(max_rollbacks=0), tmp_path, [NoiseIsNaN(3)])


# Killed


@pytest.mark.parametrize("step", [8, 9, 12, 13])
def test_a_run_that_is_killed_after_a_return_goes_on_to_the_weights_of_one_that_was_not(
    step: int, went_back: Undisturbed, tiny_run: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        run(tiny_run(), tmp_path, [NoiseIsNaN(7, 21), Killed(step)])
    capfd.readouterr()

    result = run(tiny_run(), tmp_path, [NoiseIsNaN(7, 21), recorder])

    assert returns_told(capfd.readouterr().err)[-1].endswith("learning rate times 0.25 (return 2 of 5)")
    assert returns_saved(tmp_path) == 2
    assert {step: went_back.record.rates[step] for step in recorder.rates} == recorder.rates
    assert equal(weights(result).values(), weights(went_back.result).values())


@pytest.fixture(scope="module")
def went_back(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A run that went back twice, and was not killed."""
    recorder = Recorder()
    path = tmp_path_factory.mktemp("went-back")
    return Undisturbed(run(tiny_run(), path, [NoiseIsNaN(7, 21), recorder]), recorder)


def test_a_run_that_is_killed_after_its_return_to_the_start_goes_on_to_the_same_weights(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    expected = run(tiny_run(), tmp_path / "not-killed", [NoiseIsNaN(1)])
    with pytest.raises(
        KeyboardInterrupt
    ):  # when the state of step 2, which is that of step 0, has been saved
        run(tiny_run(), tmp_path / "killed", [NoiseIsNaN(1), Killed(3)])

    result = run(tiny_run(), tmp_path / "killed")

    assert equal(weights(result).values(), weights(expected).values())


# TensorBoard


@dataclass(frozen=True)
class Watched:
    """A run whose last weights are its result, and what TensorBoard shows of it at its last step."""

    model: Glow
    batch: tuple[Tensor, Tensor]
    shown: dict[str, float]
    steps: dict[str, list[int]]


@pytest.fixture(scope="module", params=["lu", "plain"])
def watched(
    request: pytest.FixtureRequest, tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory
) -> Watched:
    path, recorder = tmp_path_factory.mktemp("watched"), Recorder()
    config = tiny_run(
        steps=20, steps_per_level=2, average_decay=0.0, parametrization=request.param, learning_rate=0.05
    )
    model = load_checkpoint(run(config, path, [recorder])).model
    log = EventAccumulator(str(path / "logs"))
    log.Reload()
    events = {name: log.Scalars(name) for name in log.Tags()["scalars"]}
    return Watched(
        model=model,
        batch=recorder.batches[20],
        shown={name: several[-1].value for name, several in events.items()},
        steps={name: [event.step for event in several] for name, several in events.items()},
    )


def test_tensorboard_has_the_condition_number_of_every_1x1_convolution(watched: Watched) -> None:
    expected = {
        f"condition/level{i}.step{k}": np.linalg.cond(step.conv1x1.weight().detach().double().numpy())
        for i, level in enumerate(watched.model.levels, 1)
        for k, step in enumerate(level.steps, 1)
    }

    shown = {name: value for name, value in watched.shown.items() if name.startswith("condition/")}
    assert len(expected) == 4
    assert min(expected.values()) > 1.01  # no longer orthogonal
    assert shown == pytest.approx(expected, rel=1e-5)
    assert watched.shown["condition"] == pytest.approx(max(expected.values()), rel=1e-5)
    assert all(watched.steps[name] == list(range(1, 21)) for name in shown)


def test_tensorboard_has_the_smallest_and_the_largest_scale_of_the_couplings_of_each_level(
    watched: Watched,
) -> None:
    scales: dict[int, list[Tensor]] = {1: [], 2: []}

    def catch(level: int) -> Callable[..., None]:
        def compute(coupling: AffineCoupling, inputs: tuple[Tensor]) -> None:
            passive = inputs[0][:, : coupling.passive]
            scales[level].append(torch.sigmoid(coupling.network(passive)[:, coupling.active :] + 2))

        return compute

    for i, level in enumerate(watched.model.levels, 1):
        for step in level.steps:
            step.coupling.register_forward_pre_hook(catch(i))
    with torch.no_grad():
        watched.model.log_prob(*watched.batch)

    for i, several in scales.items():
        assert len(several) == 2
        together = torch.stack(several)
        name = f"coupling_scale/level{i}"
        assert float(together.max()) > float(together.min()) + 0.02
        assert watched.shown[f"{name}/smallest"] == pytest.approx(float(together.min()), rel=1e-4)
        assert watched.shown[f"{name}/largest"] == pytest.approx(float(together.max()), rel=1e-4)
