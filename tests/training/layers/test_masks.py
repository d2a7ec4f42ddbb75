"""Masks split the values of an image into passive and active ones, and join them again."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from glowserve_training.layers import ChannelMask, CheckerboardMask, Mask

SIZES = [(1, 1), (2, 2), (3, 3), (4, 5), (5, 2)]
MASKS = [
    *(ChannelMask(channels, transforms_first=first) for channels in (2, 3, 8) for first in (False, True)),
    *(CheckerboardMask(channels, parity=parity) for channels in (1, 3) for parity in (0, 1)),
]


def channels_of(mask: Mask) -> int:
    together = mask.passive_channels + mask.active_channels
    return together if isinstance(mask, ChannelMask) else together // 2


def is_active(mask: Mask, x: torch.Tensor) -> np.ndarray:
    """Whether each value of x is active, by definition."""
    _, channels, height, width = x.shape
    half = channels // 2
    active = np.zeros(x.shape, bool)
    for c, row, column in itertools.product(range(channels), range(height), range(width)):
        if isinstance(mask, ChannelMask):
            active[:, c, row, column] = (c < half) == mask.transforms_first
        else:
            active[:, c, row, column] = (row + column) % 2 != mask.parity
    return active


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mask", MASKS)
def test_only_active_values_are_replaced(
    mask: Mask, size: tuple[int, int], generator: torch.Generator
) -> None:
    x = torch.randn(2, channels_of(mask), *size, generator=generator)
    _, values = mask.split(x)

    y = mask.join(x, values + 1)

    active = is_active(mask, x)
    assert values.shape[1] == mask.active_channels
    torch.testing.assert_close(y, torch.where(torch.from_numpy(active), x + 1, x), rtol=0, atol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mask", MASKS)
def test_passive_values_do_not_depend_on_active_ones(
    mask: Mask, size: tuple[int, int], generator: torch.Generator
) -> None:
    x = torch.randn(2, channels_of(mask), *size, generator=generator)
    active = torch.from_numpy(is_active(mask, x))

    passive, _ = mask.split(x)
    other, _ = mask.split(torch.where(active, x + 1, x))

    assert passive.shape[1] == mask.passive_channels
    assert torch.equal(passive, other)
    assert int(passive.count_nonzero()) == int((~active).sum())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mask", MASKS)
def test_sums_and_selections_are_of_active_values_alone(
    mask: Mask, size: tuple[int, int], generator: torch.Generator
) -> None:
    x = torch.randn(2, channels_of(mask), *size, generator=generator)
    _, values = mask.split(x)
    expected = [image[active] for image, active in zip(x.numpy(), is_active(mask, x), strict=True)]

    assert mask.sum(values).numpy() == pytest.approx([one.sum() for one in expected], abs=1e-5)
    selected = mask.select(values).flatten().tolist()
    assert sorted(selected) == sorted(np.concatenate(expected).tolist())


@pytest.mark.parametrize("transforms_first", [False, True])
def test_a_mask_of_one_channel_is_refused(transforms_first: bool) -> None:
    with pytest.raises(ValueError, match="channels is 1 and must be 2 or more"):
        ChannelMask(1, transforms_first=transforms_first)
