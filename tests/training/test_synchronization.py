"""Between two checks of the guard, a training step never waits for the device.

Where the host reads the value of a tensor, it waits until a GPU has finished all its work, and then the GPU idles.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import lightning
import pytest
from glowserve_training.hardware import Hardware
from glowserve_training.run import train
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.runs import TinyRun

# Operations that need the value of a tensor on the host, or whose output shape depends on values.
WAITING = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten._unique2"}
# Of 200 steps, the guard checks every twentieth, and every tenth is logged.
STEPS, CHECKED, LOGGED = 200, 20, 10


class WaitRecorder(TorchDispatchMode):
    """Records the stack wherever the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.stacks: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.replace("::", ".") in WAITING:
            self.stacks.append("".join(traceback.format_stack(limit=8)))
        return func(*args, **(kwargs or {}))


class WatchSteps(Callback):
    """Records waits from step `first` to `last`, and then interrupts the run."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.recorder = WaitRecorder()
        self.by_step: dict[int, list[str]] = {}

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step + 1 == self.first:
            self.recorder.__enter__()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step >= self.first:
            self.by_step[trainer.global_step], self.recorder.stacks = self.recorder.stacks, []
        if trainer.global_step == self.last:
            self.recorder.__exit__(None, None, None)
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "changes",
    [
        {"parametrization": "lu"},
        {"parametrization": "plain", "weight_decay": 0.1},
        {"parametrization": "orthogonal", "dequantization": "variational"},
        {"preprocessing": "logit", "checkerboards": 2, "dequantization": "variational"},
        {"precision": "bf16-mixed", "average_decay": 0.0},
    ],
)
@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_a_step_does_not_wait_for_the_device(
    checkpoint_activations: bool, changes: dict[str, Any], tiny_run: TinyRun, tmp_path: Path
) -> None:
    watcher = WatchSteps(CHECKED - 7, CHECKED + 9)
    hardware = Hardware(device="cpu", checkpoint_activations=checkpoint_activations)

    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(steps=STEPS, **changes), tmp_path, hardware=hardware, callbacks=[watcher])

    unlogged = {step: stacks for step, stacks in watcher.by_step.items() if step % LOGGED}
    assert len(unlogged) == 16
    # The values of a logged step are read during the next one.
    waited = {step: stacks for step, stacks in unlogged.items() if stacks and step % LOGGED != 1}
    assert waited == {}, "\n\n".join(waited[min(waited)])
    assert watcher.by_step[CHECKED] != []  # the recorder does notice the guard's check
