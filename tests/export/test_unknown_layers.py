"""A layer of training that the exporter does not know is refused by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from glowserve_export.couplings.masks import fold_mask
from glowserve_export.couplings.networks import fold_network
from glowserve_export.couplings.transforms import fold_transform
from glowserve_export.preprocessing import fold_preprocessing


class New:
    """A layer without a folded form."""


@pytest.mark.parametrize(
    "fold",
    [
        lambda layer: fold_mask(layer, 8),
        fold_network,
        lambda layer: fold_transform(layer, None),  # type: ignore[arg-type]
        fold_preprocessing,
    ],
)
def test_a_layer_without_a_folded_form_is_named(fold: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match="New has no folded form: register one"):
        fold(New())
