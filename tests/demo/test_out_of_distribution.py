"""The demo's out-of-distribution images."""

from __future__ import annotations

from glowserve.demo.out_of_distribution import letters, out_of_distribution_images
from glowserve.images import UInt8Array


def test_they_have_the_shape_of_digits_and_none_is_a_digit(digits: UInt8Array) -> None:
    for name, images in out_of_distribution_images(digits).items():
        assert images.shape[1:] == digits.shape[1:], name
        assert images.dtype == digits.dtype, name
        assert not any((image == digits).all(axis=(1, 2, 3)).any() for image in images), name


def test_letters_fill_the_image_and_all_differ() -> None:
    drawn = letters(8, 8)
    assert len(drawn) == 22
    assert len({image.tobytes() for image in drawn}) == 22
    assert all(image.max() > 128 for image in drawn)
