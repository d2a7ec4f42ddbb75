"""How many images an export runs: fewer for larger models, and the same ones on any hardware."""

from __future__ import annotations

import pytest
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.workload import (
    batch_size,
    batches,
    int8_loss_images,
    percentile_images,
    verification_images,
)

from tests.export.models import random_glow

CIFAR, FACES_64, FACES_256 = int(1.4e9), int(33e9), int(600e9)
"""Operations of the forward graph: K=16 width 256 at 32x32, and K=32 width 512 at 64x64 and 256x256."""


def test_larger_models_are_verified_on_fewer_images() -> None:
    assert [verification_images(operations) for operations in (0, CIFAR, FACES_64, FACES_256)] == [
        128,
        128,
        30,
        4,
    ]


def test_percentiles_have_a_hundred_images_and_more_if_the_model_is_small() -> None:
    assert percentile_images(CIFAR, 5000) == 5000
    assert percentile_images(FACES_64, 5000) == 303
    assert percentile_images(FACES_256, 5000) == 100
    assert percentile_images(FACES_256, 60) == 60


def test_the_work_of_choosing_int8_networks_does_not_grow_with_their_number() -> None:
    assert int8_loss_images(CIFAR, 48) == 128
    assert int8_loss_images(FACES_64, 128) == 4


@pytest.mark.parametrize(("size", "width", "expected"), [(8, 6, 32), (32, 512, 32), (256, 512, 2)])
def test_batches_of_large_images_are_small(size: int, width: int, expected: int) -> None:
    glow = fold_glow(random_glow(image_size=size, width=width, levels=1, steps_per_level=1))
    assert batch_size(glow) == expected
    assert batch_size(glow, 8) == min(32, max(1, batch_size(glow, 4) // 2)) or expected == 32


def test_batches_are_smaller_if_couplings_see_single_pixels() -> None:
    shape = {"image_size": 128, "width": 512, "levels": 1, "steps_per_level": 1}
    assert batch_size(fold_glow(random_glow(**shape))) == 8
    assert batch_size(fold_glow(random_glow(**shape, checkerboards=1, pixel_width=512))) == 2
    wide = {"dequantization": "variational", "pixel_width": 1024}
    assert batch_size(fold_glow(random_glow(**shape, **wide))) == 4


def test_batches_cover_every_image_once() -> None:
    covered = [i for batch in batches(70, 32, "counting") for i in range(70)[batch]]
    assert covered == list(range(70))
