"""Checkpoints of public Glow implementations, each by the name that --from has for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from glowserve_export.errors import ArgumentsError
from glowserve_export.frontends.folding import PublicGlow
from glowserve_export.frontends.rosinality import import_rosinality
from glowserve_export.frontends.state_dict import read_state_dict
from glowserve_export.frontends.y0ast import import_y0ast

IMPLEMENTATIONS = {"rosinality": "rosinality/glow-pytorch", "y0ast": "y0ast/Glow-PyTorch"}
"""Their repositories."""

_IMPORTS = {"rosinality": import_rosinality, "y0ast": import_y0ast}


def import_public(kind: str, checkpoint: Path, arguments: Path) -> PublicGlow:
    """Reads a model of a public implementation.

    Args:
        kind: "rosinality" (rosinality/glow-pytorch) or "y0ast" (y0ast/Glow-PyTorch).
        checkpoint: its state_dict.
        arguments: JSON of the arguments that the model was built with.

    Raises:
        ArgumentsError: the arguments cannot be read, or the model is not supported.
        ForeignCheckpointError: the checkpoint cannot be read, or does not fit the arguments.
        NotInvertibleError: a weight is not finite, or a step of flow cannot be inverted.
    """
    if kind not in _IMPORTS:
        raise ArgumentsError(f"implementation is {kind!r}; it must be one of {', '.join(_IMPORTS)}")
    # A model that overflows ends in a sentence, not in warnings before it.
    with np.errstate(all="ignore"):
        return _IMPORTS[kind](read_state_dict(checkpoint), checkpoint, arguments)
