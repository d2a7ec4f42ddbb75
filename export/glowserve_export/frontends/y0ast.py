"""Checkpoints of y0ast/Glow-PyTorch."""

from __future__ import annotations

from functools import partial

from glowserve_export.frontends.chaiyujin_family import Implementation, import_model
from glowserve_export.frontends.folding import CENTRED

import_y0ast = partial(
    import_model,
    Implementation(
        repository="y0ast/Glow-PyTorch",
        pixels=CENTRED,
        quantizes=True,
        block="block",
        conv=".conv",
        lower="lower",
        upper="upper",
        top="learn_top_fn",
        one_class=True,
    ),
)
"""Folds a model; see `import_model`."""
