"""Training on a GPU gives the results of the CPU up to rounding, and is reproducible. Skipped without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.config import GlowConfig, RunConfig
from glowserve_training.hardware import Hardware
from glowserve_training.model import Glow
from glowserve_training.run import train
from lightning.pytorch.callbacks import Callback

from glowserve.images import UInt8Array
from tests.training import runs
from tests.training.runs import Interrupt, NoiseIsNaN, TinyRun, finite, same_weights, weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU")

Perturb = Callable[..., None]
# In training, PyTorch computes convolutions in TF32. Measured on an H200: 1.3e-5.
TOLERANCE = 1e-4


def run(config: RunConfig, run_dir: Path, callbacks: Sequence[Callback] = ()) -> Path:
    return train(config, run_dir, hardware=Hardware(device="cuda"), callbacks=callbacks)


def test_the_log_likelihood_is_that_of_the_cpu(perturb: Perturb) -> None:
    config = GlowConfig(image_size=16, channels=3, levels=2, steps_per_level=4, width=32)
    model = Glow(config)
    rng = np.random.default_rng(0)
    images: UInt8Array = rng.integers(0, 256, (8, 16, 16, 3), np.uint8)
    batch = torch.from_numpy(images), torch.from_numpy(rng.random(images.shape, np.float32))
    with torch.no_grad():
        model.log_prob(*batch)  # initializes the actnorms
        perturb(model, 0.01)
        expected = model.double().log_prob(batch[0], batch[1].double())
        found = model.float().cuda().log_prob(*(tensor.cuda() for tensor in batch))
    np.testing.assert_allclose(found.cpu().numpy(), expected.numpy(), rtol=TOLERANCE)


def test_a_run_is_as_good_as_on_the_cpu(tiny_run: TinyRun, tmp_path: Path) -> None:
    config = tiny_run(steps=100)
    on_cpu, on_gpu = (
        load_checkpoint(path).training.metrics["test_bits_per_dim"]
        for path in (runs.run(config, tmp_path / "cpu"), run(config, tmp_path / "gpu"))
    )
    assert on_gpu == pytest.approx(on_cpu, abs=0.02)


def test_the_same_seed_gives_the_same_weights_even_if_the_run_was_interrupted(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    first = run(tiny_run(), tmp_path / "first")
    assert same_weights(run(tiny_run(), tmp_path / "again"), first)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_run(), tmp_path / "interrupted", [Interrupt(11)])
    assert same_weights(run(tiny_run(), tmp_path / "interrupted"), first)


def test_a_step_that_is_not_finite_is_undone(
    tiny_run: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run(tiny_run(), tmp_path, [NoiseIsNaN(7)])
    assert "was not finite at step 7; rolled back to the weights of step 6" in capfd.readouterr().err
    assert finite(weights(result).values())
