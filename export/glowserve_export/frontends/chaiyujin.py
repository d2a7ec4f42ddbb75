"""Checkpoints of chaiyujin/glow-pytorch.

It trains on u/255 of grey values u, with normal noise of standard deviation 1/256. Grey value u is scored as the
interval [u/255, (u + 1)/255): these are on the scale of its training, cover every grey value once, and are decoded as
its own inference script does, by floor(255 x).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from glowserve_export.errors import ForeignCheckpointError
from glowserve_export.frontends.chaiyujin_family import Implementation, import_model
from glowserve_export.frontends.folding import Pixels, PublicGlow

_IMPLEMENTATION = Implementation(
    repository="chaiyujin/glow-pytorch",
    section="Glow",
    pixels=Pixels(256 / 255, 128 / 255),
    block="f",
    conv="",
    lower="l",
    upper="u",
    top="learn_top",
    quantizes=False,
    one_class=False,
)


def import_chaiyujin(found: Mapping[str, Tensor], checkpoint: Path, arguments: Path) -> PublicGlow:
    """Folds a model; see `import_model`. The arguments are those of its hparams, alone or under "Glow".

    Raises:
        ExportError: see `import_model`.
    """
    if any(key.endswith(".invconv.log_s") for key in found) and not any(
        key.endswith(".invconv.p") for key in found
    ):
        raise ForeignCheckpointError(
            f"checkpoint {checkpoint} has no invconv.p and invconv.sign_s: before April 2019 the implementation did "
            "not save these random parts of LU-decomposed convolutions, so that the model is lost; train it again, "
            "with a newer version or with LU_decomposed false"
        )
    if "prior_h" in found and bool(found["prior_h"].any()):
        raise ForeignCheckpointError(
            f"checkpoint {checkpoint}: prior_h is not 0, and the implementation itself stops at such a model; give "
            "an earlier checkpoint"
        )
    return import_model(_IMPLEMENTATION, found, checkpoint, arguments)
