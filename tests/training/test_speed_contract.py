"""Between two looks of the guard, a training step never waits for the device.

Where the host asks for the value of a tensor, a GPU first has to finish all that it was given, and then stands idle.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
from glowserve_training.config import RunConfig
from glowserve_training.hardware import Hardware
from glowserve_training.run import train
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode

TinyRun = Callable[..., RunConfig]

# What cannot be answered, or whose result's shape cannot be known, before all that comes before has been computed.
WAITING = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten._unique2"}
# Of 800 steps, the guard looks at every fortieth, and every tenth is logged.
STEPS, LOOK, LOGGED = 800, 40, 10


class Waits(TorchDispatchMode):
    """Where a tensor's value was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.replace("::", ".") in WAITING:
            self.places.append("".join(traceback.format_stack(limit=8)))
        return func(*args, **(kwargs or {}))


class Watcher(Callback):
    """Watches steps `first` to `last`, and ends the run."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.waits = Waits()
        self.by_step: dict[int, list[str]] = {}

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step + 1 == self.first:
            self.waits.__enter__()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step >= self.first:
            self.by_step[trainer.global_step], self.waits.places = self.waits.places, []
        if trainer.global_step == self.last:
            self.waits.__exit__(None, None, None)
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "changes",
    [
        {"parametrization": "lu"},
        {"parametrization": "plain", "weight_decay": 0.1},
        {"parametrization": "orthogonal", "dequantization": "variational"},
        {"precision": "bf16-mixed", "coupling_actnorm": True, "average_decay": 0.0},
    ],
)
@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_a_step_does_not_wait_for_the_device(
    checkpoint_activations: bool, changes: dict[str, Any], tiny_run: TinyRun, tmp_path: Path
) -> None:
    watcher = Watcher(LOOK - 7, LOOK + 9)
    hardware = Hardware(device="cpu", checkpoint_activations=checkpoint_activations)

    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(steps=STEPS, **changes), tmp_path, hardware=hardware, callbacks=[watcher])

    between = {step: places for step, places in watcher.by_step.items() if step % LOGGED}
    assert len(between) == 16
    # What is asked for after a step, to log it, is asked within the next.
    waited = {step: places for step, places in between.items() if places and step % LOGGED != 1}
    assert waited == {}, "\n\n".join(waited[min(waited)])
    assert watcher.by_step[LOOK] != []  # the guard does ask, and is heard
