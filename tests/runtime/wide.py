"""Compares the wide runs of an engine with the others."""

from __future__ import annotations

import numpy as np

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Engine
from glowserve.runtime.randomness import dequantization_noise


def assert_wide_runs_are_the_same(engine: Engine, images: UInt8Array) -> None:
    """Both directions and the graph of explanations give the same bits, at batches of 1 to 8 and of 32."""
    for rows in (*range(1, 9), 32):
        batch = images[:rows], dequantization_noise(0, images[:rows])
        narrow, wide = (engine.forward(*batch, wide=wide) for wide in (False, True))
        _assert_equal(narrow, wide)
        _assert_equal(*(engine.reverse(narrow.latent, wide=wide) for wide in (False, True)))
        np.testing.assert_array_equal(engine.explain(*batch), engine.explain(*batch, wide=True))


def _assert_equal(one: object, other: object) -> None:
    for name, values in vars(one).items():
        np.testing.assert_array_equal(values, getattr(other, name), err_msg=name)
