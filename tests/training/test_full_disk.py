"""A disk that fills up while a run saves is reported in a sentence, and the run resumes without loss.

The kernel's limit on file sizes stands in for a full disk: a write beyond it fails as a write to a full disk does.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from glowserve_training.errors import RunError
from lightning.pytorch.callbacks import Callback

from glowserve.cli import main
from tests.training.runs import PLAIN, TinyRun, run, same_weights

# With this width, a saved state and a model are larger than the limit, and the other files of a run are smaller.
WIDTH = 64
LARGEST_FILE_BYTES = 60_000


class FillDisk(Callback):
    """Fills the disk before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step + 1 == self.step:
            fill_disk()


def fill_disk() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE_BYTES, hard))


def make_room() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.fixture(autouse=True)
def room() -> Iterator[None]:
    """Makes room after each test."""
    yield
    make_room()


def unfinished_files(run_dir: Path) -> list[Path]:
    return list(run_dir.rglob(".*.part"))


@pytest.fixture(scope="module")
def undisturbed(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of 10 steps, each of which is saved."""
    return run(tiny_run(steps=10, width=WIDTH), tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.mark.parametrize("step", [1, 2, 5, 10])
def test_a_full_disk_while_a_state_is_saved_costs_at_most_one_step(
    step: int, undisturbed: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    config, state = tiny_run(steps=10, width=WIDTH), tmp_path / "resume" / "last.ckpt"

    with pytest.raises(RunError) as raised:
        run(config, tmp_path, [FillDisk(step)])
    make_room()

    assert str(raised.value).startswith(
        f"the state of step {step} could not be written to {state}: File too large. "
    )
    assert "Make room, and the same command resumes" in str(raised.value)
    assert unfinished_files(tmp_path) == []
    assert not (tmp_path / "model.ckpt").exists()
    saved = torch.load(state, weights_only=True)["global_step"] if state.exists() else 0
    assert saved == step - 1
    assert same_weights(run(config, tmp_path), undisturbed)


def test_an_unfinished_file_of_a_killed_process_is_deleted_at_the_next_start(
    undisturbed: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    config = tiny_run(steps=10, width=WIDTH)
    with pytest.raises(RunError):
        run(config, tmp_path, [FillDisk(5)])
    make_room()
    half = (tmp_path / "resume" / "last.ckpt").read_bytes()[:1000]
    (tmp_path / "resume" / ".last.ckpt.k1ll3d.part").write_bytes(half)

    result = run(config, tmp_path)

    assert unfinished_files(tmp_path) == []
    assert same_weights(result, undisturbed)


def test_a_full_disk_while_the_model_is_saved_is_reported_in_a_sentence(
    few_digits: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"n-bits": 4, "levels": 2, "steps-per-level": 1, "width": WIDTH, "steps": 10, "batch-size": 16}
    command = ["train", "--data", str(few_digits), "--out", str(tmp_path), "--device", "cpu"]
    command += [part for name, value in (PLAIN | sizes).items() for part in (f"--{name}", str(value))]
    assert main(command) == 0
    (
        tmp_path / "model.ckpt"
    ).unlink()  # the last state is saved, so that only the model remains to be written
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
    assert unfinished_files(tmp_path) == []
    assert main(command) == 0
    assert same_weights(tmp_path / "model.ckpt", undisturbed)
