"""The threads of PyTorch."""

from __future__ import annotations

import pytest
import torch
from glowserve_training import hardware


def test_pytorch_has_no_more_threads_than_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for cores, threads in ((4, 3), (2, 2), (1, 1), (2, 1)):
            monkeypatch.setattr(hardware, "cores", lambda cores=cores: cores)
            hardware.use_allowed_cores()
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
