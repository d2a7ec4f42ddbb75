"""How training shows that it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
from glowserve_training.config import RunConfig
from glowserve_training.hardware import Hardware
from glowserve_training.run import train
from lightning.pytorch.callbacks import Callback


class Interruption(Callback):
    """Ends training after step 3."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            raise ZeroDivisionError


def test_without_a_terminal_each_validation_is_a_line_on_stderr(
    tiny_run: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_run(steps=3), tmp_path, hardware=Hardware(device="cpu"))

    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"step {step} of 3" for step in (1, 2, 3)]
    assert all("bits/dim train " in line and ", validation " in line for line in lines)


def test_a_resumed_run_says_where_it_goes_on(
    tiny_run: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError):
        train(tiny_run(steps=4), tmp_path, hardware=Hardware(device="cpu"), callbacks=[Interruption()])
    capsys.readouterr()

    train(tiny_run(steps=4), tmp_path, hardware=Hardware(device="cpu"))

    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "going on from step 2"
    assert lines[-1].startswith("step 4 of 4: bits/dim")
