"""Requests that a service must refuse with INVALID_ARGUMENT."""

from __future__ import annotations

import math

import numpy as np

from glowserve.images import encode_png
from glowserve.messages import float_tensor, image_tensor, images_message
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import tensor_pb2
from tests.soak.known_answers import KnownAnswers

Request = pb.ScoreRequest | pb.EncodeRequest | pb.DecodeRequest | pb.SampleRequest | oip.ModelInferRequest


def malformed_requests(known: KnownAnswers) -> list[Request]:
    """One request for each kind of mistake, made from valid images and latents."""
    wrong_length = image_tensor(known.images[:2])
    wrong_length.data = wrong_length.data[:-1]
    wrong_type = image_tensor(known.images[:1])
    wrong_type.dtype = tensor_pb2.DATA_TYPE_FLOAT32
    truncated_png = encode_png(known.images[0])[:-20]
    not_a_number = np.full_like(known.latents[:1], math.nan)
    return [
        pb.ScoreRequest(),
        pb.ScoreRequest(images=images_message(known.images[:2, 1:])),  # the wrong height
        pb.ScoreRequest(images=pb.Images(tensor=wrong_type)),
        pb.ScoreRequest(images=images_message([truncated_png, b"not an image"])),
        pb.EncodeRequest(images=pb.Images(tensor=wrong_length)),
        pb.DecodeRequest(latents=float_tensor(not_a_number)),
        pb.SampleRequest(n=0),
        oip.ModelInferRequest(model_name="digits"),  # without its input
    ]
