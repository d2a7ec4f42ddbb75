"""A disk that is full while a run saves: told in a sentence, and nothing is lost.

The kernel's limit on the size of a file stands in for the disk: a write beyond it fails as one on a full disk does.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.config import RunConfig
from glowserve_training.errors import RunError
from glowserve_training.hardware import Hardware
from glowserve_training.run import train
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from glowserve.cli import main

TinyRun = Callable[..., RunConfig]

# Of this width, a state is larger than this, and so is a model; what else a run writes is smaller.
WIDTH = 64
LARGEST_FILE = 60_000


class DiskFillsUp(Callback):
    """Before some step, the disk is full."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step + 1 == self.step:
            fill_disk()


def fill_disk() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, hard))


def make_room() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.fixture(autouse=True)
def room() -> Iterator[None]:
    """Whatever a test does to the disk, the next one finds room."""
    yield
    make_room()


def run(config: RunConfig, run_dir: Path, callbacks: Sequence[Callback] = ()) -> Path:
    return train(config, run_dir, hardware=Hardware(device="cpu"), callbacks=callbacks)


def weights(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path).model.state_dict()


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def unfinished(run_dir: Path) -> list[Path]:
    return list(run_dir.rglob(".*.part"))


@pytest.fixture(scope="module")
def undisturbed(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What 20 steps lead to, of which each is saved."""
    return run(tiny_run(steps=20, width=WIDTH), tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.mark.parametrize("step", [1, 2, 9, 20])
def test_a_disk_that_is_full_while_a_state_is_saved_costs_no_more_than_a_step(
    step: int, undisturbed: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    config, state = tiny_run(steps=20, width=WIDTH), tmp_path / "resume" / "last.ckpt"

    with pytest.raises(RunError) as raised:
        run(config, tmp_path, [DiskFillsUp(step)])
    make_room()

    assert str(raised.value).startswith(
        f"the state of step {step} could not be written to {state}: File too large. "
    )
    assert "Make room, and the same command goes on" in str(raised.value)
    assert unfinished(tmp_path) == []
    assert not (tmp_path / "model.ckpt").exists()
    saved = torch.load(state, weights_only=True)["global_step"] if state.exists() else 0
    assert saved == step - 1
    assert equal(weights(run(config, tmp_path)), weights(undisturbed))


def test_what_a_killed_process_was_writing_is_gone_after_the_next_start(
    undisturbed: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    config = tiny_run(steps=20, width=WIDTH)
    with pytest.raises(RunError):
        run(config, tmp_path, [DiskFillsUp(5)])
    make_room()
    half = (tmp_path / "resume" / "last.ckpt").read_bytes()[:1000]
    (tmp_path / "resume" / ".last.ckpt.k1ll3d.part").write_bytes(half)

    result = run(config, tmp_path)

    assert unfinished(tmp_path) == []
    assert equal(weights(result), weights(undisturbed))


def test_a_disk_that_is_full_while_the_model_is_saved_is_told_in_a_sentence(
    few_digits: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"n-bits": 4, "levels": 2, "steps-per-level": 1, "width": WIDTH, "steps": 20, "batch-size": 16}
    command = ["train", "--data", str(few_digits), "--out", str(tmp_path), "--device", "cpu"]
    command += [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    assert main(command) == 0
    (tmp_path / "model.ckpt").unlink()  # its last state is there, and so it is only the model that is written
    capsys.readouterr()

    fill_disk()
    code = main(command)
    make_room()

    *_, line = capsys.readouterr().err.strip().splitlines()
    assert code in (1, 2)
    assert line.startswith("glowserve: ")
    assert "model.ckpt" in line
    assert "File too large" in line
    assert not (tmp_path / "model.ckpt").exists()
    assert unfinished(tmp_path) == []
    assert main(command) == 0
    assert equal(weights(tmp_path / "model.ckpt"), weights(undisturbed))
