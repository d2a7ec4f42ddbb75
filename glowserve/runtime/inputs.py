"""Reads the fields of requests, and checks them: a malformed field is an InvalidRequestError.

Shapes: N images, H W C, D = H * W * C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from glowserve.images import UInt8Array
from glowserve.pictures import InvalidPictureError, Pictures, TooManyPixelsError
from glowserve.runtime.config import Limits
from glowserve.runtime.engine import Float32Array
from glowserve.runtime.errors import InvalidRequestError
from glowserve.runtime.repository import Bundle
from glowserve.v1 import glow_service_pb2, tensor_pb2

_SIZES = {tensor_pb2.DATA_TYPE_UINT8: 1, tensor_pb2.DATA_TYPE_FLOAT32: 4}


@dataclass(frozen=True)
class ImageSource:
    """The images of a tensor, before they are read."""

    count: int
    """N, 1 or more."""

    size: int
    """Roughly how many bytes `read` processes; 0 if there is nothing to do."""

    read: Callable[[], UInt8Array]
    """The images, uint8 [N, H, W, C] of the model's shape. Raises InvalidRequestError."""


def image_source(images: glow_service_pb2.Images, bundle: Bundle, limits: Limits) -> ImageSource | Pictures:
    """The images of a request. Checks a tensor, or the number of pictures, which a runner decodes.

    Args:
        images: the field of the request.
        bundle: the model's bundle, which has the shape and the preparation of the images.
        limits: the largest number of images, and of pixels of all pictures together before they are resized.

    Raises:
        InvalidRequestError: the message names the field, the value, and what is accepted.
    """
    source = images.WhichOneof("source")
    if source is None:
        raise InvalidRequestError(
            "images is empty: set images.encoded (PNG, JPEG or WebP files) or images.tensor", "images"
        )
    if source == "tensor":
        array = _image_tensor(images.tensor, bundle, limits.max_images)
        return ImageSource(len(array), 0, lambda: array)
    files = images.encoded.data
    _check_count("images.encoded.data", len(files), limits.max_images)
    return Pictures(files, bundle.shape, bundle.preparation, limits.max_pixels)


def invalid_picture(error: InvalidPictureError, pictures: Pictures) -> InvalidRequestError:
    """The error of a request whose pictures cannot be decoded."""
    field = "images.encoded.data" + ("" if error.index is None else f"[{error.index}]")
    limits = {"max_pixels_per_call": pictures.max_pixels} if isinstance(error, TooManyPixelsError) else {}
    return InvalidRequestError(f"{field}: {error}", field, limits)


def read_latents(tensor: tensor_pb2.Tensor, bundle: Bundle, *, max_images: int) -> Float32Array:
    """The latents of a request, float32 [N, D], all finite.

    Args:
        tensor: the field of the request.
        bundle: the model's bundle.
        max_images: the largest N.

    Raises:
        InvalidRequestError: the message names the field, the value, and what is accepted.
    """
    size = bundle.manifest.image.latent_size
    _check_tensor("latents", tensor, tensor_pb2.DATA_TYPE_FLOAT32, [size], max_images)
    latents = np.frombuffer(tensor.data, "<f4").reshape(-1, size)
    finite = np.isfinite(latents).all(axis=1)
    if not finite.all():
        raise InvalidRequestError(
            f"latents: row {int(np.argmin(finite))} is not finite; every value must be", "latents.data"
        )
    return latents


def check_samples(n: int, most: int) -> None:
    """Checks the number of samples.

    Raises:
        InvalidRequestError: `n` is below 1 or above `most`.
    """
    if not 1 <= n <= most:
        raise InvalidRequestError(f"n is {n}; it must lie in 1 to {most}", "n")


def check_steps(steps: int, most: int) -> None:
    """Checks the number of steps of an interpolation.

    Raises:
        InvalidRequestError: `steps` is below 2 or above `most`.
    """
    if not 2 <= steps <= most:
        raise InvalidRequestError(f"steps is {steps}; it must lie in 2 to {most}", "steps")


def check_number(images: glow_service_pb2.Images, number: int, what: str) -> None:
    """Checks how many images a request has, before they are decoded. `image_source` refuses a request without images.

    Args:
        images: the field of the request.
        number: how many it takes.
        what: the same in words, for the message.

    Raises:
        InvalidRequestError: there are more or fewer.
    """
    source, shape = images.WhichOneof("source"), images.tensor.shape
    encoded = source == "encoded"
    n = len(images.encoded.data) if encoded else shape[0] if shape else 0
    if source is not None and n != number:
        field = "images.encoded.data" if encoded else "images.tensor.shape[0]"
        raise InvalidRequestError(f"{field}: {n} images; it takes {what}", field)


def check_strengths(strengths: Sequence[float], most: int) -> None:
    """Checks how far an image is to be moved.

    Raises:
        InvalidRequestError: there are none or more than `most`, or one is not finite.
    """
    if not 1 <= len(strengths) <= most:
        raise InvalidRequestError(
            f"strengths has {len(strengths)} values; it must have 1 to {most}, one for each image",
            "strengths",
        )
    for i, strength in enumerate(strengths):
        if not math.isfinite(strength):
            raise InvalidRequestError(f"strengths[{i}] is {strength}; it must be finite", f"strengths[{i}]")


def check_format(form: int) -> None:
    """Checks the format of a request.

    Raises:
        InvalidRequestError: the enum has no such value; the message lists its values.
    """
    if form not in glow_service_pb2.ImageFormat.values():
        known = ", ".join(glow_service_pb2.ImageFormat.keys())
        raise InvalidRequestError(f"format is {form}; it must be one of {known}", "format")


def check_temperature(temperature: float, field: str = "temperature") -> None:
    """Checks a temperature.

    Args:
        temperature: the standard deviation of the latents.
        field: the path of its field in the request.

    Raises:
        InvalidRequestError: it is negative or not finite.
    """
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise InvalidRequestError(f"temperature is {temperature}; it must be 0 or more, and finite", field)


def _image_tensor(tensor: tensor_pb2.Tensor, bundle: Bundle, max_images: int) -> UInt8Array:
    _check_tensor("images.tensor", tensor, tensor_pb2.DATA_TYPE_UINT8, list(bundle.shape), max_images)
    return np.frombuffer(tensor.data, np.uint8).reshape(-1, *bundle.shape)


def _check_tensor(
    name: str, tensor: tensor_pb2.Tensor, dtype: tensor_pb2.DataType, row: list[int], max_images: int
) -> None:
    shape = list(tensor.shape)
    if tensor.dtype != dtype:
        given = _dtype_name(tensor.dtype)
        raise InvalidRequestError(
            f"{name}.dtype is {given}; it must be {_dtype_name(dtype)}", f"{name}.dtype"
        )
    if len(shape) != len(row) + 1 or shape[1:] != row:
        wanted = ", ".join(["N", *map(str, row)])
        raise InvalidRequestError(
            f"{name}.shape is {shape[:8]}; this model takes [{wanted}]", f"{name}.shape"
        )
    _check_count(f"{name}.shape[0]", shape[0], max_images)
    length = math.prod(shape) * _SIZES[dtype]
    if len(tensor.data) != length:
        raise InvalidRequestError(
            f"{name}.data has {len(tensor.data)} bytes; shape {shape} takes {length}", f"{name}.data"
        )


def _check_count(name: str, count: int, most: int) -> None:
    if not 1 <= count <= most:
        limits = {"max_images_per_call": most} if count > most else {}
        raise InvalidRequestError(f"{name}: {count} images; a call takes 1 to {most}", name, limits)


def _dtype_name(dtype: int) -> str:
    return tensor_pb2.DataType.Name(dtype) if dtype in tensor_pb2.DataType.values() else str(dtype)
