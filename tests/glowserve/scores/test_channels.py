"""The statistics of the channels of latents."""

from __future__ import annotations

import numpy as np
import pytest

from glowserve.scores.channels import channel_statistics, statistics_width


@pytest.mark.parametrize(
    ("shape", "levels", "blocks"),
    [
        ((8, 8, 1), 1, [(4, 16)]),
        ((28, 28, 1), 2, [(2, 196), (8, 49)]),
        ((32, 16, 3), 3, [(6, 128), (12, 32)]),
        ((64, 64, 3), 6, [(6, 1024), (12, 256)]),
    ],
)
def test_each_channel_has_its_mean_and_its_energy(
    rng: np.random.Generator, shape: tuple[int, int, int], levels: int, blocks: list[tuple[int, int]]
) -> None:
    latent = rng.normal(size=(3, int(np.prod(shape)))).astype(np.float32)
    expected, first = [], 0
    for channels, positions in blocks:
        for i in range(channels):
            some = latent[:, first + i * positions : first + (i + 1) * positions].astype(np.float64)
            expected.append(([some.mean(1)], [np.log((some**2).mean(1) + 1e-6)]))
        first += channels * positions
    found = channel_statistics(latent, shape, levels)
    assert found.shape == (3, statistics_width(shape[2], levels))
    np.testing.assert_allclose(
        np.sort(found, axis=1), np.sort(np.concatenate([a + b for a, b in expected]).T, axis=1)
    )


def test_a_constant_channel_and_one_that_is_not_finite_give_no_error() -> None:
    latent = np.zeros((3, 64), np.float32)
    latent[1, :2], latent[2, 5] = (np.inf, -np.inf), np.nan
    found = channel_statistics(latent, (8, 8, 1), 2)
    assert np.isfinite(found[0]).all()
    assert not np.isfinite(found[1:]).all(axis=1).any()
