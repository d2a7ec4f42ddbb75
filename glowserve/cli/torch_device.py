"""PyTorch's name of the device that --device asks for."""

from __future__ import annotations

from glowserve.cli.failure import Failure


def torch_device(device: str) -> str:
    """The device's name in PyTorch, "cpu" or "cuda".

    Args:
        device: "auto", "cpu" or "cuda".

    Raises:
        Failure: PyTorch cannot use the device.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise Failure("device is 'cuda', and PyTorch finds no usable GPU; use 'cpu' or 'auto'", 2)
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
