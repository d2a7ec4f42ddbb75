"""Converts arrays and results to protobuf messages, and messages to arrays and results; for client and service.

Shapes: N images, H W C, D = H * W * C.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from glowserve.images import Preparation, UInt8Array, decode_png
from glowserve.results import Encodings, Explanations, ModelInfo, Samples, SetScore
from glowserve.scores import TABLE, Part, Score, Scores
from glowserve.scores.sets import FeatureDifference
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import manifest_pb2, tensor_pb2


def image_tensor(images: UInt8Array) -> tensor_pb2.Tensor:
    """uint8 [N, H, W, C] as a Tensor."""
    return tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_UINT8, shape=images.shape, data=images.tobytes())


def float_tensor(values: npt.NDArray[np.float32]) -> tensor_pb2.Tensor:
    """float32 [N, ...], such as latents [N, D], as a Tensor."""
    data = np.asarray(values, "<f4").tobytes()
    return tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=values.shape, data=data)


def float_array(tensor: tensor_pb2.Tensor) -> npt.NDArray[np.float32]:
    """The values of a Tensor of a response, float32 [N, ...]."""
    return np.frombuffer(tensor.data, "<f4").reshape(tuple(tensor.shape))


def images_message(images: list[bytes] | UInt8Array) -> pb.Images:
    """The bytes of N files, or uint8 [N, H, W, C], as Images."""
    if isinstance(images, list):
        return pb.Images(encoded=pb.EncodedImages(data=images))
    return pb.Images(tensor=image_tensor(images))


def images_array(images: pb.Images) -> UInt8Array:
    """Images of a response, PNG files of one size or a tensor, as uint8 [N, H, W, C]."""
    if images.HasField("encoded"):
        return np.stack([decode_png(data) for data in images.encoded.data])
    return np.frombuffer(images.tensor.data, np.uint8).reshape(tuple(images.tensor.shape))


def count(images: pb.Images) -> int:
    """How many images a message has, or says that it has."""
    return images.tensor.shape[0] if images.tensor.shape else len(images.encoded.data)


def scores_message(scores: Scores) -> pb.ScoreResponse:
    """Scores as a ScoreResponse."""
    return pb.ScoreResponse(
        model=pb.ModelVersion(name=scores.model, version=scores.version),
        seed=scores.seed,
        scores=[pb.ImageScore(**row) for row in scores.rows()],
        false_alarm_rate=scores.false_alarm_rate,
    )


def scores_of(responses: Sequence[pb.ScoreResponse]) -> Scores:
    """The scores of one or more responses, in order; model, version and seed are those of the first response.

    A score that is not in every row is in none: an older service has answered some of the requests.
    """
    rows = [score for response in responses for score in response.scores]
    columns: dict[str, Any] = {
        name: np.array([getattr(row, name) for row in rows], score.dtype)
        for name, score in TABLE.items()
        if score.default or all(_has(row, score) for row in rows)
    }
    first = responses[0]
    return Scores(
        **columns,
        model=first.model.name,
        version=first.model.version,
        seed=first.seed,
        false_alarm_rate=first.false_alarm_rate if first.HasField("false_alarm_rate") else None,
    )


def _has(row: pb.ImageScore, score: Score) -> bool:
    return bool(getattr(row, score.name)) if score.by else row.HasField(score.name)


def explanations_message(explanations: Explanations) -> pb.ExplainResponse:
    """Explanations as an ExplainResponse."""
    return pb.ExplainResponse(
        model=pb.ModelVersion(name=explanations.model, version=explanations.version),
        deviations=float_tensor(explanations.deviations),
        explanations=[
            pb.ImageExplanation(finite=finite, parts=[pb.ImagePart(**vars(part)) for part in parts])
            for finite, parts in zip(explanations.finite.tolist(), explanations.parts, strict=True)
        ],
    )


def explanations_of(responses: Sequence[pb.ExplainResponse]) -> Explanations:
    """The explanations of one or more responses, in order; model and version are those of the first response."""
    images = [each for response in responses for each in response.explanations]
    first = responses[0].model
    return Explanations(
        np.concatenate([float_array(response.deviations) for response in responses]),
        tuple(tuple(map(_part, each.parts)) for each in images),
        np.array([each.finite for each in images], np.bool_),
        first.name,
        first.version,
    )


def _part(part: pb.ImagePart) -> Part:
    return Part(part.name, part.level, part.value, part.deviation)


def samples_of(responses: Sequence[pb.SampleResponse]) -> Samples:
    """The samples of one or more responses, in order; model, version and seed are those of the first response."""
    images = [images_array(response.images) for response in responses]
    indices = [
        response.first_index + np.arange(len(some)) for response, some in zip(responses, images, strict=True)
    ]
    not_finite = [index for response in responses for index in response.not_finite]
    first = responses[0]
    return Samples(
        np.concatenate(images),
        first.model.name,
        first.model.version,
        first.seed,
        np.concatenate(indices),
        np.array(not_finite, np.int64),
    )


def encodings_of(responses: Sequence[pb.EncodeResponse]) -> Encodings:
    """The encodings of one or more responses, in order; model and version are those of the first response."""
    latents = [float_array(response.latents) for response in responses]
    mismatched = [value for response in responses for value in response.mismatched_values]
    first = responses[0].model
    return Encodings(np.concatenate(latents), np.array(mismatched, np.int64), first.name, first.version)


def set_score_message(score: SetScore) -> pb.ScoreSetResponse:
    """The score of a set as a ScoreSetResponse."""
    kept = {
        name: value for name, value in vars(score).items() if name not in ("model", "version", "features")
    }
    return pb.ScoreSetResponse(
        model=pb.ModelVersion(name=score.model, version=score.version),
        features=[pb.FeatureDifference(**vars(feature)) for feature in score.features],
        **kept,
    )


def set_score_of(response: pb.ScoreSetResponse) -> SetScore:
    """The score of a set in a response."""
    return SetScore(
        p_value=response.p_value,
        resolution=response.resolution,
        n=response.n,
        calibration_images=response.calibration_images,
        features=tuple(FeatureDifference(each.name, each.shift, each.spread) for each in response.features),
        bits_per_dim=response.bits_per_dim,
        not_finite=response.not_finite,
        anomalous=response.anomalous,
        false_alarm_rate=response.false_alarm_rate,
        model=response.model.name,
        version=response.model.version,
    )


def model_infos(response: pb.ListModelsResponse) -> list[ModelInfo]:
    """The models of a response: first those that are served, then the others."""
    return [model_info(summary) for summary in (*response.models, *response.not_served)]


def model_info(summary: pb.ModelSummary) -> ModelInfo:
    """One model of a ListModelsResponse. A state that this version does not know becomes UNSPECIFIED."""
    image = summary.image
    known = summary.state in pb.ModelState.values()
    return ModelInfo(
        name=summary.model.name,
        version=summary.model.version,
        height=image.height,
        width=image.width,
        channels=image.channels,
        n_bits=image.n_bits,
        state=pb.ModelState.Name(summary.state).removeprefix("MODEL_STATE_") if known else "UNSPECIFIED",
        reason=summary.reason,
        classes=tuple(summary.classes),
        attributes=tuple(summary.attributes),
    )


def preparation_of(message: manifest_pb2.Preparation) -> Preparation:
    """The preparation of a manifest. What an old one lacks is as it was before.

    Raises:
        ValueError: a value is not allowed.
    """
    fit, bits_used = message.fit or Preparation.fit, message.bits_used or Preparation.bits_used
    return Preparation(message.filter, message.background, fit, bits_used)
