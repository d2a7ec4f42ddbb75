"""From the images and tensors of a request to arrays, or to a sentence that says what is wrong with them."""

from __future__ import annotations

import math

import numpy as np

from glowserve.images import (
    ENCODED_FORMATS,
    InvalidImageError,
    UInt8Array,
    open_encoded,
    prepare,
)
from glowserve.runtime.engine import Float32Array
from glowserve.runtime.errors import InvalidRequestError
from glowserve.runtime.repository import Bundle
from glowserve.v1 import glow_service_pb2, tensor_pb2

_SIZES = {tensor_pb2.DATA_TYPE_UINT8: 1, tensor_pb2.DATA_TYPE_FLOAT32: 4}


def read_images(
    images: glow_service_pb2.Images, bundle: Bundle, *, max_images: int, max_pixels: int
) -> UInt8Array:
    """The images of a request, uint8 [N, H, W, C].

    Args:
        images: as they came.
        bundle: of the model that they are for.
        max_images: most that are accepted.
        max_pixels: most pixels that encoded pictures may have together, before they are brought to size.

    Raises:
        InvalidRequestError: the message names the field, the value, and what would be accepted.
    """
    source = images.WhichOneof("source")
    if source is None:
        raise InvalidRequestError(
            "images is empty: set images.encoded (PNG, JPEG or WebP files) or images.tensor", "images"
        )
    if source == "tensor":
        return _read_image_tensor(images.tensor, bundle, max_images)
    files = images.encoded.data
    _check_count("images.encoded.data", len(files), max_images)
    height, width, channels = bundle.shape
    pixels, result = 0, np.empty((len(files), *bundle.shape), np.uint8)
    for i, data in enumerate(files):
        try:
            with open_encoded(data, formats=ENCODED_FORMATS) as picture:
                pixels += picture.width * picture.height
                if pixels > max_pixels:
                    raise InvalidImageError(
                        f"it has {picture.width} x {picture.height} pixels, which makes {pixels} in this call; at "
                        f"most {max_pixels} are accepted"
                    )
                result[i] = prepare(picture, height, width, channels, bundle.preparation)
        except InvalidImageError as error:
            field = f"images.encoded.data[{i}]"
            raise InvalidRequestError(f"{field}: {error}", field) from None
    return result


def read_latents(tensor: tensor_pb2.Tensor, bundle: Bundle, *, max_images: int) -> Float32Array:
    """The latents of a request, float32 [N, D], all finite.

    Raises:
        InvalidRequestError: the message names the field, the value, and what would be accepted.
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
    """Refuses a number of samples.

    Raises:
        InvalidRequestError: it is none, or too many.
    """
    if not 1 <= n <= most:
        raise InvalidRequestError(f"n is {n}; it must lie in 1 to {most}", "n")


def check_steps(steps: int, most: int) -> None:
    """Refuses a number of steps from one image to another.

    Raises:
        InvalidRequestError: there is no room for both, or they are too many.
    """
    if not 2 <= steps <= most:
        raise InvalidRequestError(f"steps is {steps}; it must lie in 2 to {most}", "steps")


def check_pair(images: glow_service_pb2.Images) -> None:
    """Refuses images that are more or fewer than two; whether they are images is not looked at.

    Raises:
        InvalidRequestError: they are.
    """
    source, shape = images.WhichOneof("source"), images.tensor.shape
    encoded = source == "encoded"
    n = len(images.encoded.data) if encoded else shape[0] if shape else 0
    if source is not None and n != 2:
        field = "images.encoded.data" if encoded else "images.tensor.shape[0]"
        raise InvalidRequestError(f"{field}: {n} images; it takes two, the first and the last", field)


def check_temperature(temperature: float, field: str = "temperature") -> None:
    """Refuses what is no standard deviation.

    Args:
        temperature: it.
        field: where in the request it is.

    Raises:
        InvalidRequestError: it is negative or not finite.
    """
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise InvalidRequestError(f"temperature is {temperature}; it must be 0 or more, and finite", field)


def _read_image_tensor(tensor: tensor_pb2.Tensor, bundle: Bundle, max_images: int) -> UInt8Array:
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
        raise InvalidRequestError(f"{name}: {count} images; a call takes 1 to {most}", name)


def _dtype_name(dtype: int) -> str:
    return tensor_pb2.DataType.Name(dtype) if dtype in tensor_pb2.DataType.values() else str(dtype)
