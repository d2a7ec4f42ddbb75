"""Checks of the graphs' outputs: values that change in a round trip, and values that are not finite."""

from __future__ import annotations

import numpy as np
import pytest

from glowserve.images import UInt8Array
from glowserve.mismatch import mismatched_values
from glowserve.runtime.checks import finite_images, require_finite_images, require_finite_latents
from glowserve.runtime.engine import Reverse
from glowserve.runtime.errors import NotFiniteError

D = 64


def reverse(pixels: np.ndarray) -> Reverse:
    """The output of a reverse graph with these pixels before rounding."""
    return Reverse(np.zeros(pixels.shape, np.uint8), pixels.astype(np.float32))


def decoded(images: UInt8Array) -> Reverse:
    """The output of a reverse graph that decodes to these images."""
    return Reverse(images, images.astype(np.float32))


# Values that are not finite


def test_finite_latents_and_images_pass() -> None:
    require_finite_latents(np.full((2, D), 3e38, np.float32))
    require_finite_images(reverse(np.full((2, 4, 4, 1), -3e38)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_image_whose_latent_is_not_finite_is_named(value: float) -> None:
    latent = np.zeros((4, D), np.float32)
    latent[2, 63] = latent[3, 0] = value
    with pytest.raises(
        NotFiniteError, match=r"^images: image 2 lies so far from the model's data that"
    ) as caught:
        require_finite_latents(latent)
    assert caught.value.images == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_row_whose_image_is_not_finite_is_named(value: float) -> None:
    pixels = np.zeros((4, 4, 4, 1))
    pixels[1, 3, 3, 0] = pixels[3] = value
    with pytest.raises(NotFiniteError, match=r"^latents: row 1 does not decode to a finite image$"):
        require_finite_images(reverse(pixels))
    with pytest.raises(NotFiniteError, match=r"^images: step 1 does not decode to a finite image$"):
        require_finite_images(reverse(pixels), what="images: step")
    assert finite_images(reverse(pixels)).tolist() == [True, False, True, False]


# Round trips


def test_values_in_another_bin_are_counted_for_each_image() -> None:
    images = np.zeros((3, 2, 2, 1), np.uint8)
    changed = images.copy()
    changed[1, 0, 0, 0] = 255
    changed[2] = 128
    assert mismatched_values(images, decoded(changed), 8).tolist() == [0, 1, 4]


@pytest.mark.parametrize("n_bits", range(1, 9))
def test_another_value_in_the_same_bin_is_no_mismatch(n_bits: int) -> None:
    width = 2 ** (8 - n_bits)
    greys = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    first_of_bin = greys // width * width
    assert mismatched_values(greys, decoded(first_of_bin.astype(np.uint8)), n_bits).tolist() == [0]
    # One grey value more leaves the bin at its upper border, and every bin but the last has one above.
    brighter = np.minimum(greys.astype(int) + 1, 255).astype(np.uint8)
    assert mismatched_values(greys, decoded(brighter), n_bits).tolist() == [2**n_bits - 1]


def test_a_value_that_is_not_finite_is_a_mismatch_whatever_its_byte() -> None:
    images = np.full((1, 2, 2, 1), 7, np.uint8)
    pixels = np.full((1, 2, 2, 1), 7.5, np.float32)
    pixels[0, 0, 0, 0] = np.nan
    assert mismatched_values(images, Reverse(images, pixels), 8).tolist() == [1]
