"""Files that version 0.1.0 wrote: its checkpoints load, and its interrupted runs resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.data import load_held_out
from glowserve_training.errors import RunError
from glowserve_training.evaluation import EvaluatedGlow, measure_likelihood, measure_round_trip
from glowserve_training.presets import run_config

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


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """RUN_DIR of a run of 40 steps on the digits, rolled back once at step 8 and interrupted after step 25."""
    return Path(shutil.copytree(OLD / "interrupted_run" / "run", tmp_path / "run"))


def test_an_old_interrupted_run_resumes_to_the_weights_that_the_old_version_ended_with(
    all_validations: None, interrupted: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = run_config("digits", levels=1, steps_per_level=1, width=4, steps=40, batch_size=16)

    result = run(config, interrupted)

    assert "resuming from step 24" in capfd.readouterr().err
    assert rollbacks_saved(interrupted) == 1
    expected = OLD / "interrupted_run" / "finished.ckpt"
    assert load_checkpoint(result).training.metrics == pytest.approx(
        load_checkpoint(expected).training.metrics, abs=TOLERANCE_BITS_PER_DIM
    )
    # 16 steps of up to 2e-3 in each weight; rounding differences between processors grow to far less.
    torch.testing.assert_close(weights(result), weights(expected), rtol=0, atol=1e-4)


def test_an_old_run_directory_refuses_other_arguments(interrupted: Path) -> None:
    config = run_config(
        "digits", levels=1, steps_per_level=1, width=4, steps=40, batch_size=16, max_rollbacks=3
    )

    with pytest.raises(RunError, match="other arguments: max_rollbacks was 5 and is now 3"):
        run(config, interrupted)
