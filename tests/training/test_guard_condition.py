"""The guard: steps that make a 1x1 convolution ill-conditioned are undone; TensorBoard has what the guard checks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.layers import Coupling
from glowserve_training.model import Glow
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from tests.training.runs import Recorder, TinyRun, equal, events, finite, rollbacks_reported, run, weights


class SetConditionNumber(Callback):
    """Makes the update of one step give the matrix of level2.step1 this condition number."""

    def __init__(self, step: int, condition: float) -> None:
        self.step, self.condition = step, condition

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        matrix = module.model.levels[1].steps[0].conv1x1.matrix

        @torch.no_grad()
        def deform(*_: Any) -> None:
            if trainer.global_step + 1 != self.step:
                return
            if math.isinf(self.condition):
                matrix.zero_()[0] = 1  # has rank 1 in float32, too
                return
            u, s, vh = torch.linalg.svd(matrix)
            s[-1] = s[0] / self.condition
            matrix.copy_(u @ torch.diag(s) @ vh)

        trainer.optimizers[0].register_step_post_hook(deform)


SINGULAR = "the 1x1 convolution of level2.step1 is singular"


@pytest.mark.parametrize(
    ("step", "condition", "fault"),
    [
        (8, math.inf, SINGULAR),
        (8, 1e5, r"the 1x1 convolution of level2.step1 has condition number (?P<condition>\S+), over 10000"),
        # Singular after step 7, so that at step 8 the loss is infinite and the update is masked.
        (7, math.inf, f"{SINGULAR} and the loss or its gradient was not finite at step 8"),
    ],
)
def test_an_ill_conditioned_matrix_is_undone_and_reported_with_its_layer(
    step: int,
    condition: float,
    fault: str,
    tiny_run: TinyRun,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    recorder = Recorder()

    result = run(tiny_run(parametrization="plain"), tmp_path, [SetConditionNumber(step, condition), recorder])

    (line,) = rollbacks_reported(capfd.readouterr().err)
    found = re.fullmatch(
        rf"step 8: {fault}; rolled back to the weights of step 6, learning rate times 0\.5 \(rollback 1 of 5\)",
        line,
    )
    assert found, line
    if "condition" in found.groupdict():
        # float32 has 24 bits: the smallest singular value, 1e-5 of the largest, is good to 6e-8 / 1e-5 = 0.6 %, and
        # the message has three digits.
        assert float(found["condition"]) == pytest.approx(condition, rel=0.02)
    assert equal(recorder.weights[8], recorder.weights[6])
    assert recorder.rates[9] == pytest.approx(recorder.rates[7] / 2)
    assert finite(weights(result).values())
    matrices = [level.steps[0].conv1x1.weight().detach() for level in load_checkpoint(result).model.levels]
    assert max(float(torch.linalg.cond(matrix)) for matrix in matrices) < 100


def test_a_matrix_within_the_condition_limit_is_no_fault(
    tiny_run: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(parametrization="plain", condition_limit=2e5)

    run(config, tmp_path, [SetConditionNumber(8, 1e5)])

    assert rollbacks_reported(capfd.readouterr().err) == []


@dataclass(frozen=True)
class Logged:
    """A model with the weights of its last step; the batch of that step; TensorBoard's last values and all steps."""

    model: Glow
    batch: tuple[Tensor, Tensor]
    last: dict[str, float]
    steps: dict[str, list[int]]


@pytest.fixture(scope="module", params=["qlu", "lu", "plain"])
def logged(
    request: pytest.FixtureRequest, tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory
) -> Logged:
    path, recorder = tmp_path_factory.mktemp("logged"), Recorder()
    config = tiny_run(steps=10, steps_per_level=2, parametrization=request.param, learning_rate=0.05)
    model = load_checkpoint(run(config, path, [recorder])).model
    last_step = max(recorder.weights)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), recorder.weights[last_step], strict=True):
            parameter.copy_(value)
    shown = events(path)
    return Logged(
        model=model,
        batch=recorder.batches[last_step],
        last={name: points[-1][1] for name, points in shown.items()},
        steps={name: [step for step, _ in points] for name, points in shown.items()},
    )


def test_tensorboard_has_the_condition_number_of_every_1x1_convolution(logged: Logged) -> None:
    expected = {
        f"condition/level{i}.step{k}": np.linalg.cond(step.conv1x1.weight().detach().double().numpy())
        for i, level in enumerate(logged.model.levels, 1)
        for k, step in enumerate(level.steps, 1)
    }

    shown = {name: value for name, value in logged.last.items() if name.startswith("condition/")}
    assert len(expected) == 4
    assert min(expected.values()) > 1.01  # no longer orthogonal
    assert shown == pytest.approx(expected, rel=1e-5)
    assert logged.last["condition"] == pytest.approx(max(expected.values()), rel=1e-5)
    assert all(logged.steps[name] == list(range(1, len(logged.steps[name]) + 1)) for name in shown)


def test_tensorboard_has_the_smallest_and_the_largest_coupling_scale_of_each_level(logged: Logged) -> None:
    scales: dict[int, list[Tensor]] = {1: [], 2: []}

    def record(level: int) -> Callable[..., None]:
        def compute(coupling: Coupling, inputs: tuple[Tensor]) -> None:
            passive, active = coupling.mask.split(inputs[0])
            _, log_scale = coupling.transform(active, coupling.network(passive))
            scales[level].append(log_scale.exp())

        return compute

    for i, level in enumerate(logged.model.levels, 1):
        for step in level.steps:
            step.coupling.register_forward_pre_hook(record(i))
    with torch.no_grad():
        logged.model.log_prob(*logged.batch)

    for i, of_steps in scales.items():
        assert len(of_steps) == 2
        together = torch.stack(of_steps)
        name = f"coupling_scale/level{i}"
        assert float(together.max()) > float(together.min()) + 0.02
        assert logged.last[f"{name}/smallest"] == pytest.approx(float(together.min()), rel=1e-4)
        assert logged.last[f"{name}/largest"] == pytest.approx(float(together.max()), rel=1e-4)
