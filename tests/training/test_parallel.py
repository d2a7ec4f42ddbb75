"""Processes that share a batch end where one alone does.

Two processes talk over gloo on loopback. They are started twice: a script trains until both are killed, and the
command goes on from there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import glowserve_training.fit
import lightning
import pytest
import torch
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.config import RunConfig
from glowserve_training.data import StepLoader
from glowserve_training.errors import RunError
from glowserve_training.hardware import Hardware
from glowserve_training.run import train
from lightning.pytorch.callbacks import Callback
from torch import Tensor

TinyRun = Callable[..., RunConfig]
Tensors = dict[str, Tensor]

# How far apart the weights of two processes and of one may be after five steps of 2e-3 from a common state. Measured:
# 4e-9; where every process has the images of the first, 3e-3.
TOLERANCE = 1e-6

SIZES = {
    "n_bits": 4,
    "levels": 2,
    "steps_per_level": 1,
    "width": 4,
    "steps": 8,
    "batch_size": 16,
    "learning_rate": 2e-3,
    "average_decay": 0.0,
    "coupling_actnorm": True,
}
KILLED_AFTER = 4

SCRIPT = """
import os, sys, torch
from pathlib import Path
from lightning.pytorch.callbacks import Callback
from glowserve_training.hardware import Hardware
from glowserve_training.presets import run_config
from glowserve_training.run import train

class Recorder(Callback):
    def save(self, step, rank, state):
        torch.save(state, f"{records}/step{step}.rank{rank}.pt")

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.global_step == 0:
            self.save(0, trainer.global_rank, module.model.state_dict())

    def on_before_optimizer_step(self, trainer, module, *_):
        if trainer.global_step == 0:
            gradient = {name: p.grad for name, p in module.model.named_parameters()}
            self.save("1.gradient", trainer.global_rank, gradient)

    def on_train_batch_end(self, trainer, module, *_):
        self.save(trainer.global_step, trainer.global_rank, module.model.state_dict())
        if trainer.global_step == killed_after:
            os._exit(9)

data, run_dir, records, killed_after, sizes = sys.argv[1:4] + [int(sys.argv[4]), eval(sys.argv[5])]
torch.set_num_threads(1)
train(run_config(data, **sizes), Path(run_dir), hardware=Hardware(device="cpu", devices=2), callbacks=[Recorder()])
"""


class Start(Callback):
    """The weights that a run begins with, and its first gradient."""

    def __init__(self) -> None:
        self.weights: Tensors = {}
        self.gradient: Tensors = {}

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step == 0:
            self.weights = {name: value.clone() for name, value in module.model.state_dict().items()}

    def on_before_optimizer_step(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step == 0:
            self.gradient = {name: p.grad.clone() for name, p in module.model.named_parameters()}


@dataclass(frozen=True)
class Two:
    """What two processes did."""

    weights: dict[tuple[int, int], Tensors]
    """By step and rank, until they were killed; at step 0, those that the first batch has set."""

    gradient: Tensors
    """Of the first step."""

    killed: Path
    """A copy of the run's directory as it was then."""

    result: Path
    """What the command made of it."""

    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def one(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """The same from the beginning with one process."""
    start = Start()
    train_alone(tiny_run(**SIZES), tmp_path_factory.mktemp("one"), start)
    return start


@pytest.fixture(scope="module")
def two(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Two:
    path = tmp_path_factory.mktemp("two")
    (path / "script.py").write_text(SCRIPT)
    (path / "records").mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    begin = [sys.executable, path / "script.py", few_digits, path / "run", path / "records"]
    begin += [str(KILLED_AFTER), repr(SIZES)]
    go_on = [sys.executable, "-m", "glowserve", "train", "--data", few_digits, "--out", path / "run"]
    go_on += ["--device", "cpu", "--devices", "2", "--json"]
    for name, value in SIZES.items():
        go_on += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])

    killed = subprocess.run(begin, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert killed.returncode != 0, killed.stderr
    assert not (path / "run" / "model.ckpt").exists(), killed.stderr
    shutil.copytree(path / "run", path / "killed")
    done = subprocess.run(go_on, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr

    def recorded(name: str) -> Tensors:
        return dict(torch.load(path / "records" / f"{name}.pt", weights_only=True))

    return Two(
        weights={
            (step, rank): recorded(f"step{step}.rank{rank}")
            for step in range(KILLED_AFTER + 1)
            for rank in (0, 1)
        },
        gradient=recorded("step1.gradient.rank0"),
        killed=path / "killed",
        result=path / "run" / "model.ckpt",
        stdout=done.stdout,
        stderr=done.stderr,
    )


def train_alone(config: RunConfig, run_dir: Path, *callbacks: Callback) -> Tensors:
    """The weights that one process ends with."""
    result = train(config, run_dir, hardware=Hardware(device="cpu"), callbacks=callbacks)
    return weights(result)


def weights(path: Path) -> Tensors:
    return load_checkpoint(path).model.state_dict()


def actnorms(tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if ".actnorm." in name}


def distance(one: Tensors, other: Tensors) -> float:
    """The largest difference."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


class HalfABatch(StepLoader):
    """What all processes see if each is given the share of the first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"rank": 0, "world_size": 2}))


def test_two_processes_hold_the_same_weights_after_every_step(two: Two) -> None:
    for step in range(KILLED_AFTER + 1):
        assert distance(two.weights[step, 0], two.weights[step, 1]) == 0


def test_two_processes_set_actnorm_as_one_with_the_whole_batch_does(
    two: Two, one: Start, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(actnorms(one.weights)) == 2 * 3 * 3  # steps, actnorms of each, and what each has
    assert distance(actnorms(two.weights[0, 0]), actnorms(one.weights)) < 1e-5

    monkeypatch.setattr(glowserve_training.fit, "StepLoader", HalfABatch)
    alone = Start()
    train_alone(tiny_run(**SIZES), tmp_path, alone)
    assert distance(actnorms(alone.weights), actnorms(one.weights)) > 0.1  # had each looked at its own part


def test_two_processes_find_the_gradient_of_one_with_the_whole_batch(two: Two, one: Start) -> None:
    largest = max(float(value.abs().max()) for value in one.gradient.values())

    assert largest > 1e-2
    assert distance(two.gradient, one.gradient) < 1e-5 * largest


def test_two_processes_end_with_the_weights_of_one_with_the_whole_batch(
    two: Two, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They are compared from the same state on, which two processes saved. At the very first step actnorm leaves some
    # gradients that are nothing but rounding, and Adam moves a weight by the learning rate however small they are.
    shutil.copytree(two.killed, tmp_path / "right")
    shutil.copytree(two.killed, tmp_path / "wrong")
    expected = train_alone(tiny_run(**SIZES), tmp_path / "right")

    assert distance(weights(two.result), expected) < TOLERANCE

    monkeypatch.setattr(glowserve_training.fit, "StepLoader", HalfABatch)
    assert distance(train_alone(tiny_run(**SIZES), tmp_path / "wrong"), expected) > 1000 * TOLERANCE


def test_two_processes_that_were_killed_go_on_from_their_last_state(two: Two) -> None:
    assert f"going on from step {KILLED_AFTER - 1}" in two.stderr
    assert distance(weights(two.result), two.weights[KILLED_AFTER, 0]) > 1e-3


def test_of_two_processes_one_speaks(two: Two) -> None:
    assert two.stderr.count("step 8 of 8: bits/dim") == 1
    assert two.stderr.count("going on from step") == 1
    assert json.loads(two.stdout)["steps"] == 8


# What cannot be shared


def test_a_batch_that_the_processes_cannot_share_equally_is_refused(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    with pytest.raises(
        RunError, match="batch_size is 15, which 2 processes cannot share equally; make it a multiple of 2"
    ):
        train(tiny_run(batch_size=15), tmp_path / "run", hardware=Hardware(device="cpu", devices=2))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"devices": 0}, "devices is 0; it must be 1 or more"),
        ({"nodes": -1}, "nodes is -1; it must be 1 or more"),
        ({"device": "tpu"}, "device is 'tpu'; it must be 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_an_impossible_machine_is_refused_with_the_value(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Hardware(**changes)


def test_the_processes_of_several_nodes_are_counted_together() -> None:
    assert Hardware(devices=4, nodes=2).processes == 8
