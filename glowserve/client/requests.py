"""Makes the requests of the clients' calls, from the arguments of the calls.

Shapes: N latents, D = H * W * C.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from glowserve import messages
from glowserve.client.inputs import ImageLike, Portion, pair
from glowserve.v1 import glow_service_pb2 as pb

# Latents in one request: as many as images in a portion.
_LATENTS = 64


def score_request(portion: Portion, model: str, version: int, seed: int | None) -> pb.ScoreRequest:
    """A ScoreRequest for a portion of images.

    Raises:
        ValueError: the seed or the version is out of range.
    """
    _check_seed(seed)
    return pb.ScoreRequest(model=_spec(model, version), images=messages.images_message(portion), seed=seed)


def sample_request(
    n: int, temperature: float, seed: int | None, model: str, version: int
) -> pb.SampleRequest:
    """A SampleRequest for n images, in the form of tensors.

    Raises:
        ValueError: the number, the seed or the version is out of range.
    """
    _check_seed(seed)
    return pb.SampleRequest(
        model=_spec(model, version), n=n, temperature=temperature, seed=seed, format=pb.IMAGE_FORMAT_RAW
    )


def encode_request(portion: Portion, model: str, version: int) -> pb.EncodeRequest:
    """An EncodeRequest for a portion of images.

    Raises:
        ValueError: the version is out of range.
    """
    return pb.EncodeRequest(model=_spec(model, version), images=messages.images_message(portion))


def decode_requests(latents: npt.ArrayLike, model: str, version: int) -> list[pb.DecodeRequest]:
    """DecodeRequests for latents [N, D], at most 64 in each.

    Raises:
        ValueError: the array does not have the shape [N, D], or the version is out of range.
    """
    array = np.asarray(latents, np.float32)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"latents have shape {list(array.shape)}; pass [N, D], as `encode` returns them")
    return [
        pb.DecodeRequest(
            model=_spec(model, version),
            latents=messages.latent_tensor(array[i : i + _LATENTS]),
            format=pb.IMAGE_FORMAT_RAW,
        )
        for i in range(0, len(array), _LATENTS)
    ]


def interpolate_request(
    one: ImageLike, other: ImageLike, steps: int, model: str, version: int
) -> pb.InterpolateRequest:
    """An InterpolateRequest for images in the form of a tensor.

    Raises:
        ValueError: the number of steps or the version is out of range.
        InvalidImageError, OSError, TypeError: see `inputs.pair`.
    """
    return pb.InterpolateRequest(
        model=_spec(model, version),
        images=messages.images_message(pair(one, other)),
        steps=steps,
        format=pb.IMAGE_FORMAT_RAW,
    )


def model_request(model: str, version: int) -> pb.GetModelRequest:
    """A GetModelRequest.

    Raises:
        ValueError: the version is out of range.
    """
    return pb.GetModelRequest(model=_spec(model, version))


def _check_seed(seed: int | None) -> None:
    if seed is not None and not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; it must lie in 0 to 2^64 - 1")


def _spec(model: str, version: int) -> pb.ModelSpec:
    return pb.ModelSpec(name=model, version=version)
