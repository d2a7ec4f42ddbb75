"""Loading a model to export: a checkpoint that cannot be read or inverted is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from glowserve_export.errors import NotInvertibleError
from glowserve_export.source import load_glowserve_checkpoint
from glowserve_training.checkpoint import load_checkpoint, save_checkpoint
from glowserve_training.errors import TrainingError


def test_a_weight_that_is_not_finite_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    changed = load_checkpoint(checkpoint)
    name = "levels.1.steps.2.coupling.network.0.conv.weight"
    changed.model.state_dict()[name].view(-1)[3].fill_(np.nan)
    save_checkpoint(changed, tmp_path / "changed.ckpt")
    with pytest.raises(NotInvertibleError, match=f"weight {name} is not finite"):
        load_glowserve_checkpoint(tmp_path / "changed.ckpt")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.ckpt", Path(__file__)):
        with pytest.raises(TrainingError, match=path.name):
            load_glowserve_checkpoint(path)
