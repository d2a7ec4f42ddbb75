"""Files that version 0.1.0 wrote: its checkpoints load, and its interrupted runs resume."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.data import load_held_out, load_images
from glowserve_training.directory import RunDirectory
from glowserve_training.errors import RunError
from glowserve_training.evaluation import EvaluatedGlow, measure_likelihood, measure_round_trip

from glowserve.cli import main
from tests.training.runs import rollbacks_saved, run, weights

OLD = Path(__file__).parents[1] / "data" / "0.1.0"
# The evaluation noise is a function of the seed, so that only rounding differs between processors: float32 rounds a
# log-likelihood by about 1e-6 of its value, 3.5 bits/dim here.
TOLERANCE_BITS_PER_DIM = 1e-4


def test_an_old_checkpoint_has_the_recorded_likelihood_on_test_images() -> None:
    expected = json.loads((OLD / "expected.json").read_text())["test_bits_per_dim"]
    checkpoint = load_checkpoint(OLD / "model.ckpt")

    images = load_held_out(checkpoint.data)
    evaluated = measure_likelihood(EvaluatedGlow(checkpoint.model), images.test)

    assert images.digest == checkpoint.training.held_out_digest
    assert evaluated.bits_per_dim == pytest.approx(expected, abs=TOLERANCE_BITS_PER_DIM)
    assert checkpoint.training.metrics["test_bits_per_dim"] == expected


def test_an_old_checkpoint_reconstructs_test_images() -> None:
    checkpoint = load_checkpoint(OLD / "model.ckpt")

    images = load_held_out(checkpoint.data).test
    round_trip = measure_round_trip(EvaluatedGlow(checkpoint.model), images)

    assert round_trip.images_exact == len(images) == 179


def command(run_dir: Path) -> list[str]:
    """The command that began the interrupted run."""
    sizes = ["--levels", "1", "--steps-per-level", "1", "--width", "4", "--steps", "40", "--batch-size", "16"]
    return ["train", "--data", "digits", "--out", str(run_dir), "--device", "cpu", *sizes]


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """RUN_DIR of a run of 40 steps on the digits, rolled back once at step 8 and interrupted after step 25."""
    return Path(shutil.copytree(OLD / "interrupted_run" / "run", tmp_path / "run"))


def test_an_old_interrupted_run_resumes_to_the_weights_that_the_old_version_ended_with(
    all_validations: None, interrupted: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(command(interrupted)) == 0

    assert "resuming from step 24" in capfd.readouterr().err
    assert rollbacks_saved(interrupted) == 1
    expected = OLD / "interrupted_run" / "finished.ckpt"
    # The last weights were also the best.
    for path in (interrupted / "model.ckpt", interrupted / "last.ckpt"):
        assert load_checkpoint(path).training.metrics == pytest.approx(
            load_checkpoint(expected).training.metrics, abs=TOLERANCE_BITS_PER_DIM
        )
        # 16 steps of up to 2e-3 in each weight; rounding differences between processors grow to far less.
        torch.testing.assert_close(weights(path), weights(expected), rtol=0, atol=1e-4)
    assert load_checkpoint(expected).training.best_step is None


def test_an_old_run_keeps_its_split_and_has_no_patience(interrupted: Path) -> None:
    config = RunDirectory(interrupted).config()

    assert config is not None
    assert (config.data.split_version, config.patience, config.extensions) == (1, 0, ())
    assert len(load_images(config.data).validation) == 179


def test_an_old_run_that_has_finished_is_extended(
    all_validations: None, interrupted: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(command(interrupted)) == 0
    record = interrupted / "run.json"
    old = json.loads(record.read_text())
    del old["finished"]  # the old version did not write it
    record.write_text(json.dumps(old))
    capfd.readouterr()

    assert main([*command(interrupted), "--extend-to", "50"]) == 0

    assert "extending the run from step 40" in capfd.readouterr().err
    assert load_checkpoint(interrupted / "last.ckpt").training.steps == 50


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (["--width", "5"], r"model\.width was 4 and is now 5"),
        (["--patience", "3"], "patience was 0 and is now 3"),
        (["--coupling", "additive"], r"model\.coupling was affine and is now additive"),
    ],
)
def test_an_old_run_directory_refuses_other_arguments(
    flags: list[str], difference: str, interrupted: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(interrupted), *flags]) == 2

    assert re.search(f"has a run with other arguments: {difference}", capfd.readouterr().err)


def test_an_old_run_directory_refuses_another_configuration(interrupted: Path) -> None:
    config = RunDirectory(interrupted).config()
    assert config is not None

    with pytest.raises(RunError, match="other arguments: max_rollbacks was 5 and is now 3"):
        run(replace(config, max_rollbacks=3), interrupted)
