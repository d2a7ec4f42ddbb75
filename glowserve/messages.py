"""Between protobuf messages and arrays, both ways, for clients and service alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from glowserve.client.inputs import Portion
from glowserve.images import UInt8Array, decode_png
from glowserve.results import (
    Encodings,
    ModelInfo,
    Samples,
    Scores,
)
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import tensor_pb2


def image_tensor(images: UInt8Array) -> tensor_pb2.Tensor:
    """uint8 [N, H, W, C] as a Tensor."""
    return tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_UINT8, shape=images.shape, data=images.tobytes())


def latent_tensor(latents: npt.NDArray[np.float32]) -> tensor_pb2.Tensor:
    """float32 [N, D] as a Tensor."""
    data = np.asarray(latents, "<f4").tobytes()
    return tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=latents.shape, data=data)


def images_message(portion: Portion) -> pb.Images:
    """Files' bytes, or uint8 [N, H, W, C], as Images."""
    if isinstance(portion, list):
        return pb.Images(encoded=pb.EncodedImages(data=portion))
    return pb.Images(tensor=image_tensor(portion))


def images_array(images: pb.Images) -> UInt8Array:
    """What a service sent, PNG files or a tensor, as uint8 [N, H, W, C]."""
    if images.HasField("encoded"):
        return np.stack([decode_png(data) for data in images.encoded.data])
    return np.frombuffer(images.tensor.data, np.uint8).reshape(tuple(images.tensor.shape))


def scores_message(scores: Scores) -> pb.ScoreResponse:
    """Scores as the service sends them."""
    columns = (scores.log_likelihood, scores.bits_per_dim, scores.percentile, scores.finite)
    return pb.ScoreResponse(
        model=pb.ModelVersion(name=scores.model, version=scores.version),
        seed=scores.seed,
        scores=[
            pb.ImageScore(log_likelihood=nats, bits_per_dim=bits, percentile=percentile, finite=finite)
            for nats, bits, percentile, finite in zip(*(column.tolist() for column in columns), strict=True)
        ],
    )


def scores_of(responses: Sequence[pb.ScoreResponse]) -> Scores:
    """The scores of one or more responses, in order."""
    rows = [score for response in responses for score in response.scores]
    first = responses[0]
    return Scores(
        log_likelihood=np.array([row.log_likelihood for row in rows]),
        bits_per_dim=np.array([row.bits_per_dim for row in rows]),
        percentile=np.array([row.percentile for row in rows]),
        finite=np.array([row.finite for row in rows]),
        model=first.model.name,
        version=first.model.version,
        seed=first.seed,
    )


def samples_of(responses: Sequence[pb.SampleResponse]) -> Samples:
    """The images of a stream's responses, in order."""
    images = np.concatenate([images_array(response.images) for response in responses])
    first = responses[0]
    return Samples(images, first.model.name, first.model.version, first.seed)


def encodings_of(responses: Sequence[pb.EncodeResponse]) -> Encodings:
    """The latents of one or more responses, in order."""
    latents = [
        np.frombuffer(response.latents.data, "<f4").reshape(tuple(response.latents.shape))
        for response in responses
    ]
    mismatched = [value for response in responses for value in response.mismatched_values]
    first = responses[0].model
    return Encodings(np.concatenate(latents), np.array(mismatched, np.int64), first.name, first.version)


def model_infos(response: pb.ListModelsResponse) -> list[ModelInfo]:
    """What ListModels answers."""
    return [model_info(summary) for summary in (*response.models, *response.not_served)]


def model_info(summary: pb.ModelSummary) -> ModelInfo:
    """A line of it."""
    image = summary.image
    known = summary.state in pb.ModelState.values()  # a newer server may know more
    return ModelInfo(
        name=summary.model.name,
        version=summary.model.version,
        height=image.height,
        width=image.width,
        channels=image.channels,
        n_bits=image.n_bits,
        state=pb.ModelState.Name(summary.state).removeprefix("MODEL_STATE_") if known else "UNSPECIFIED",
        reason=summary.reason,
    )
