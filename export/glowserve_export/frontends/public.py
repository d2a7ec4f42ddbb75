"""Reads a checkpoint of one of the public implementations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from glowserve_export.errors import ArgumentsError
from glowserve_export.frontends.chaiyujin import import_chaiyujin
from glowserve_export.frontends.folding import PublicGlow
from glowserve_export.frontends.normflows import import_normflows
from glowserve_export.frontends.rosinality import import_rosinality
from glowserve_export.frontends.state_dict import read_state_dict
from glowserve_export.frontends.y0ast import import_y0ast
from glowserve_export.size import check_size

IMPLEMENTATIONS = {
    "rosinality": "rosinality/glow-pytorch",
    "y0ast": "y0ast/Glow-PyTorch",
    "chaiyujin": "chaiyujin/glow-pytorch",
    "normflows": "VincentStimper/normalizing-flows",
}
"""The GitHub repository of each implementation, by its name on the command line (--from)."""

_Import = Callable[[Mapping[str, Tensor], Path, Path], PublicGlow]
_IMPORTS: dict[str, _Import] = {
    "rosinality": import_rosinality,
    "y0ast": import_y0ast,
    "chaiyujin": import_chaiyujin,
    "normflows": import_normflows,
}


def import_public(kind: str, checkpoint: Path, arguments: Path, *, precision: str = "fp32") -> PublicGlow:
    """Reads and folds a model of a public implementation.

    Args:
        kind: see `IMPLEMENTATIONS`.
        checkpoint: the model's state_dict.
        arguments: JSON with the arguments of the model's constructor or of its training script.
        precision: that the model will be exported with.

    Raises:
        ArgumentsError: the arguments cannot be read, or the model is not supported.
        ForeignCheckpointError: the checkpoint cannot be read, or does not fit the arguments.
        ExportError: the model is too large for a graph in that precision.
        NotInvertibleError: a weight is not finite, or a step of flow cannot be inverted.
    """
    if kind not in _IMPORTS:
        raise ArgumentsError(f"implementation is {kind!r}; it must be one of {', '.join(_IMPORTS)}")
    weights = read_state_dict(checkpoint)
    check_size(weights, precision)
    # Overflow is an error with a sentence of its own; NumPy's warnings would only come before it.
    with np.errstate(all="ignore"):
        return _IMPORTS[kind](weights, checkpoint, arguments)
