"""Reading the fields of requests. Malformed requests of every kind: tests/service/front/test_malformed_requests.py."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from glowserve.images import UInt8Array, encode_png, prepare
from glowserve.messages import float_tensor, images_message
from glowserve.pictures import InvalidPictureError, Pictures
from glowserve.runtime import inputs
from glowserve.runtime.config import Limits
from glowserve.runtime.errors import InvalidRequestError
from glowserve.runtime.inputs import ImageSource
from glowserve.runtime.randomness import latents
from glowserve.runtime.repository import Bundle
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import tensor_pb2

LIMITS = Limits(max_images=4, max_pixels=1000)


def file_of(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def blank(width: int, height: int) -> bytes:
    return file_of(Image.new("1", (width, height)))


def pictures_of(files: list[bytes], bundle: Bundle) -> Pictures:
    source = inputs.image_source(images_message(files), bundle, LIMITS)
    assert isinstance(source, Pictures)
    return source


# Images


def test_a_tensor_needs_no_decoding(bundle: Bundle, digits: UInt8Array) -> None:
    source = inputs.image_source(images_message(digits[:3]), bundle, LIMITS)
    assert isinstance(source, ImageSource)
    assert (source.count, source.size) == (3, 0)
    np.testing.assert_array_equal(source.read(), digits[:3])


def test_pictures_are_prepared_when_they_are_decoded(bundle: Bundle) -> None:
    pictures = [Image.effect_noise((20, 10), 80).convert("RGB"), Image.effect_noise((7, 9), 80)]
    source = pictures_of([file_of(each) for each in pictures], bundle)
    assert (source.count, source.max_pixels) == (2, LIMITS.max_pixels)
    expected = [prepare(each, *bundle.shape, bundle.preparation) for each in pictures]
    np.testing.assert_array_equal(source.decode(), expected)


@pytest.mark.parametrize(
    ("pictures", "words"),
    [
        (
            [b"text"],
            r"^images\.encoded\.data\[0\]: 4 bytes are not a picture .*; accepted are PNG, JPEG, WEBP$",
        ),
        ([blank(2, 2), b""], r"^images\.encoded\.data\[1\]: 0 bytes are not a picture"),
        ([file_of(Image.new("L", (2, 2)), "BMP")], "are not a picture that can be read"),
        ([file_of(Image.effect_noise((25, 25), 80))[:300]], "the picture is damaged"),
        (
            [blank(40, 20), blank(20, 11)],
            r"^images\.encoded\.data\[1\]: it has 20 x 11 pixels, which makes 1020",
        ),
    ],
)
def test_a_picture_that_cannot_be_decoded_is_named(bundle: Bundle, pictures: list[bytes], words: str) -> None:
    with pytest.raises(InvalidPictureError) as caught:
        pictures_of(pictures, bundle).decode()
    error = inputs.invalid_picture(caught.value, pictures_of(pictures, bundle))
    assert re.search(words, str(error))
    assert error.field == f"images.encoded.data[{len(pictures) - 1}]"


def test_all_pictures_together_may_have_as_many_pixels_as_the_limit(bundle: Bundle) -> None:
    assert pictures_of([blank(40, 20), blank(20, 10)], bundle).decode().shape == (2, 8, 8, 1)


@pytest.mark.parametrize("n", [0, 5])
def test_the_number_of_images_is_limited(bundle: Bundle, digits: UInt8Array, n: int) -> None:
    with pytest.raises(InvalidRequestError, match=rf"images\.encoded\.data: {n} images; a call takes 1 to 4"):
        inputs.image_source(images_message([encode_png(each) for each in digits[:n]]), bundle, LIMITS)
    with pytest.raises(InvalidRequestError, match=rf"images\.tensor\.shape\[0\]: {n} images; a call takes"):
        inputs.image_source(images_message(digits[:n]), bundle, LIMITS)


def test_a_request_without_images_is_refused(bundle: Bundle) -> None:
    with pytest.raises(InvalidRequestError, match=r"images is empty: set images\.encoded") as caught:
        inputs.image_source(pb.Images(), bundle, LIMITS)
    assert caught.value.field == "images"


@pytest.mark.parametrize(
    ("tensor", "field", "words"),
    [
        ({"dtype": 2, "shape": [1, 8, 8, 1]}, "images.tensor.dtype", "dtype is DATA_TYPE_FLOAT32"),
        (
            {"dtype": 99, "shape": [1, 8, 8, 1]},
            "images.tensor.dtype",
            "dtype is 99; it must be DATA_TYPE_UINT8",
        ),
        ({"dtype": 1, "shape": [8, 8, 1]}, "images.tensor.shape", "this model takes .N, 8, 8, 1."),
        ({"dtype": 1, "shape": [1, 8, 9, 1]}, "images.tensor.shape", "this model takes .N, 8, 8, 1."),
        ({"dtype": 1, "shape": [1, 8, 8, 1], "data": b"x"}, "images.tensor.data", "has 1 bytes; .* takes 64"),
    ],
)
def test_a_malformed_tensor_is_refused(
    bundle: Bundle, tensor: dict[str, object], field: str, words: str
) -> None:
    images = pb.Images(tensor=tensor_pb2.Tensor(**tensor))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match=words) as caught:
        inputs.image_source(images, bundle, LIMITS)
    assert caught.value.field == field


# Latents


def test_latents_are_read_as_float32(bundle: Bundle) -> None:
    given = latents(0, 0, 3, 64)
    found = inputs.read_latents(float_tensor(given), bundle, max_images=4)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, given)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_latent_that_is_not_finite_is_named(bundle: Bundle, value: float) -> None:
    given = latents(0, 0, 3, 64)
    given[1, 5] = value
    with pytest.raises(InvalidRequestError, match="latents: row 1 is not finite") as caught:
        inputs.read_latents(float_tensor(given), bundle, max_images=4)
    assert caught.value.field == "latents.data"


# Numbers


def test_the_number_of_samples_is_limited() -> None:
    inputs.check_samples(1, 5)
    inputs.check_samples(5, 5)
    for n in (0, 6):
        with pytest.raises(InvalidRequestError, match=f"n is {n}; it must lie in 1 to 5"):
            inputs.check_samples(n, 5)


def test_the_number_of_steps_is_limited() -> None:
    inputs.check_steps(2, 5)
    inputs.check_steps(5, 5)
    for steps in (0, 1, 6):
        with pytest.raises(InvalidRequestError, match=f"steps is {steps}; it must lie in 2 to 5"):
            inputs.check_steps(steps, 5)


@pytest.mark.parametrize("temperature", [-1e-9, np.nan, np.inf])
def test_a_temperature_is_finite_and_0_or_more(temperature: float) -> None:
    inputs.check_temperature(0.0)
    inputs.check_temperature(3e38)
    with pytest.raises(InvalidRequestError, match="it must be 0 or more, and finite") as caught:
        inputs.check_temperature(temperature, "inputs[1]")
    assert caught.value.field == "inputs[1]"


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    for form in pb.ImageFormat.values():
        inputs.check_format(form)
    with pytest.raises(InvalidRequestError, match=r"format is 7; .* IMAGE_FORMAT_PNG, IMAGE_FORMAT_RAW"):
        inputs.check_format(7)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_an_interpolation_takes_two_images(digits: UInt8Array, n: int) -> None:
    for images in (images_message(digits[:n]), images_message([encode_png(each) for each in digits[:n]])):
        with pytest.raises(InvalidRequestError, match=f"{n} images; it takes two, the first and the last"):
            inputs.check_number(images, 2, "two, the first and the last")
    inputs.check_number(images_message(digits[:2]), 2, "two")
