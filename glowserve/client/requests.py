"""What the two clients share: how a channel is set up, and the requests they send."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from glowserve import messages
from glowserve.client.inputs import ImageLike, Portion, pair
from glowserve.v1 import glow_service_pb2 as pb

# Seconds that one call to the service may take.
TIMEOUT = 60.0

# gRPC itself retries what was not begun: nothing that the service does has side effects.
_RETRY = {
    "methodConfig": [
        {
            "name": [{"service": "glowserve.v1.GlowService"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

# How often a call that waits asks whether the connection lives; servers have to allow it.
KEEPALIVE_MS = 30_000

CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", json.dumps(_RETRY)),
    # A request that does not fit in here is not retried; portions of images have up to 16 MiB.
    ("grpc.per_rpc_retry_buffer_size", 32 * 2**20),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without it, a call that waits longer than two pings take asks no more.
    ("grpc.http2.max_pings_without_data", 0),
]


def sample_timeout(timeout: float, n: int) -> float:
    """Seconds for a whole stream of n samples: a second for each on top."""
    return timeout + n


def check_seed(seed: int | None) -> None:
    """Refuses a seed that no message can hold.

    Raises:
        ValueError: it is negative, or too large.
    """
    if seed is not None and not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; it must lie in 0 to 2^64 - 1")


def score_request(portion: Portion, model: str, version: int, seed: int | None) -> pb.ScoreRequest:
    """A ScoreRequest for a portion of images.

    Raises:
        ValueError: the seed or the version is out of range.
    """
    check_seed(seed)
    return pb.ScoreRequest(model=_spec(model, version), images=messages.images_message(portion), seed=seed)


def sample_request(
    n: int, temperature: float, seed: int | None, model: str, version: int
) -> pb.SampleRequest:
    """A SampleRequest for raw images.

    Raises:
        ValueError: the number, the seed or the version is out of range.
    """
    check_seed(seed)
    return pb.SampleRequest(
        model=_spec(model, version), n=n, temperature=temperature, seed=seed, format=pb.IMAGE_FORMAT_RAW
    )


def encode_request(portion: Portion, model: str, version: int) -> pb.EncodeRequest:
    """An EncodeRequest for a portion of images."""
    return pb.EncodeRequest(model=_spec(model, version), images=messages.images_message(portion))


def decode_requests(latents: npt.ArrayLike, model: str, version: int) -> list[pb.DecodeRequest]:
    """DecodeRequests for latents [N, D], some at a time.

    Raises:
        ValueError: that is not the shape of latents.
    """
    array = np.asarray(latents, np.float32)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"latents have shape {list(array.shape)}; pass [N, D], as `encode` returns them")
    return [
        pb.DecodeRequest(
            model=_spec(model, version),
            latents=messages.latent_tensor(array[i : i + 64]),
            format=pb.IMAGE_FORMAT_RAW,
        )
        for i in range(0, len(array), 64)
    ]


def interpolate_request(
    one: ImageLike, other: ImageLike, steps: int, model: str, version: int
) -> pb.InterpolateRequest:
    """An InterpolateRequest for raw images.

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
    """A GetModelRequest."""
    return pb.GetModelRequest(model=_spec(model, version))


def _spec(model: str, version: int) -> pb.ModelSpec:
    return pb.ModelSpec(name=model, version=version)
