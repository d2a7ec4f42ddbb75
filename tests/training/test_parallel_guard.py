"""What only one of several processes meets, all of them undo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "n_bits": 4,
    "levels": 2,
    "steps_per_level": 1,
    "width": 4,
    "steps": 12,
    "batch_size": 16,
    "learning_rate": 2e-3,
}

SCRIPT = """
import math, sys, torch
from pathlib import Path

from lightning.pytorch.callbacks import Callback
from glowserve_training.hardware import Hardware
from glowserve_training.presets import run_config
from glowserve_training.run import train

class Faults(Callback):
    # In the second process: at step 3 noise that is not a number; at step 7 an infinite loss, whose gradient is finite.
    def on_train_start(self, trainer, module):
        sound = module._bits_per_dim
        module._bits_per_dim = lambda batch: sound(batch) + (math.inf if self.at(trainer, 7) else 0)

    def on_train_batch_start(self, trainer, module, batch, _):
        if self.at(trainer, 3):
            batch[1].fill_(math.nan)

    def on_train_batch_end(self, trainer, module, *_):
        torch.save(module.model.state_dict(), f"{records}/step{trainer.global_step}.rank{trainer.global_rank}.pt")

    def at(self, trainer, step):
        return trainer.training and trainer.global_rank == 1 and trainer.global_step + 1 == step

data, run_dir, records, sizes = sys.argv[1:4] + [eval(sys.argv[4])]
torch.set_num_threads(1)
train(run_config(data, **sizes), Path(run_dir), hardware=Hardware(device="cpu", devices=2), callbacks=[Faults()])
"""


def test_a_fault_in_one_of_two_processes_is_undone_in_both(few_digits: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py", few_digits, tmp_path / "run", tmp_path, repr(SIZES)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)

    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "back to the weights" in line]
    assert len(told) == 2  # the second process says nothing
    assert "not finite at step 3; back to the weights of step 2" in told[0]
    assert "not finite at step 7; back to the weights of step 6" in told[1]
    for step in range(1, SIZES["steps"] + 1):
        one, other = (
            torch.load(tmp_path / f"step{step}.rank{rank}.pt", weights_only=True) for rank in (0, 1)
        )
        assert all(torch.equal(one[name], other[name]) for name in one), step
        assert all(bool(value.isfinite().all()) for value in one.values()), step
