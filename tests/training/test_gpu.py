"""Training on a GPU: as good as on the CPU, and the same again. Skipped without one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.config import RunConfig
from glowserve_training.hardware import Hardware
from glowserve_training.model import Glow, GlowConfig
from glowserve_training.run import train
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from glowserve.images import UInt8Array

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU")

TinyRun = Callable[..., RunConfig]
Perturb = Callable[..., None]
# Convolutions in training are PyTorch's own choice, TF32. Measured, on an H200: 1.3e-5.
TOLERANCE = 1e-4


def run(config: RunConfig, run_dir: Path, callbacks: Sequence[Callback] = ()) -> Path:
    return train(config, run_dir, hardware=Hardware(device="cuda"), callbacks=callbacks)


def weights(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path).model.state_dict()


def assert_same(one: Path, other: Path) -> None:
    theirs = weights(other)
    different = [name for name, tensor in weights(one).items() if not torch.equal(tensor, theirs[name])]
    assert not different


class Ends(Callback):
    """Ends a run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise ZeroDivisionError


class NoiseIsNaN(Callback):
    """The noise of one batch is not a number."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, _: int) -> None:
        if trainer.global_step + 1 == self.step:
            batch[1].fill_(math.nan)


def test_a_model_computes_on_the_gpu_what_it_does_on_the_cpu(perturb: Perturb) -> None:
    config = GlowConfig(image_size=16, channels=3, levels=2, steps_per_level=4, width=32)
    model = Glow(config)
    rng = np.random.default_rng(0)
    images: UInt8Array = rng.integers(0, 256, (8, 16, 16, 3), np.uint8)
    given = torch.from_numpy(images), torch.from_numpy(rng.random(images.shape, np.float32))
    with torch.no_grad():
        model.log_prob(*given)  # sets the actnorms
        perturb(model, 0.01)
        expected = model.double().log_prob(given[0], given[1].double())
        found = model.float().cuda().log_prob(*(tensor.cuda() for tensor in given))
    np.testing.assert_allclose(found.cpu().numpy(), expected.numpy(), rtol=TOLERANCE)


def test_a_run_is_as_good_as_one_on_the_cpu(tiny_run: TinyRun, tmp_path: Path) -> None:
    config = tiny_run(steps=100)
    on_cpu = train(config, tmp_path / "cpu", hardware=Hardware(device="cpu"))
    bits = [
        load_checkpoint(path).training.metrics["test_bits_per_dim"]
        for path in (on_cpu, run(config, tmp_path / "gpu"))
    ]
    assert bits[1] == pytest.approx(bits[0], abs=0.02)


def test_the_same_seed_gives_the_same_weights_and_so_does_an_interrupted_run(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    first = run(tiny_run(), tmp_path / "first")
    assert_same(run(tiny_run(), tmp_path / "again"), first)
    with pytest.raises(ZeroDivisionError):
        run(tiny_run(), tmp_path / "interrupted", [Ends(21)])
    assert_same(run(tiny_run(), tmp_path / "interrupted"), first)


def test_a_step_that_is_not_finite_is_undone(
    tiny_run: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run(tiny_run(), tmp_path, [NoiseIsNaN(7)])
    assert "was not finite at step 7; back to the weights of step 6" in capfd.readouterr().err
    assert all(bool(tensor.isfinite().all()) for tensor in weights(result).values())
