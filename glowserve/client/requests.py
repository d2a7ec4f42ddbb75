"""Makes the requests of the clients' calls, from the arguments of the calls.

Shapes: N latents, D = H * W * C.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real

import grpc
import numpy as np

from glowserve import messages
from glowserve.client.errors import RequestError
from glowserve.client.inputs import ImageLike, LatentLike, Portion, image_or_latent, together
from glowserve.scores import TABLE, Scores
from glowserve.scores.asked import all_asked
from glowserve.v1 import glow_service_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class ScoreArguments:
    """The arguments of a call that scores images, but for the images; see `Client.score`.

    Raises:
        TypeError: the scores are no names.
    """

    model: str = ""
    version: int = 0
    seed: int | None = None
    scores: Iterable[str] = ()
    false_alarm_rate: float | None = None
    importance_samples: int = 1
    class_name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", _names("scores", self.scores))  # an iterator can be read once

    def request(self, portion: Portion, classes: Sequence[str] = ()) -> pb.ScoreRequest:
        """A ScoreRequest for a portion of images, with their classes if they have not the same.

        Raises:
            TypeError, ValueError: an argument has a wrong type or is out of range.
        """
        draws = _integer("importance_samples", self.importance_samples, bits=32)
        return pb.ScoreRequest(
            model=spec(self.model, self.version),
            images=messages.images_message(portion),
            seed=_seed(self.seed),
            scores=self.scores,
            false_alarm_rate=_rate(self.false_alarm_rate),
            importance_samples=None if draws == 1 else draws,
            classes=[self.class_name] * len(portion) if self.class_name else classes,
        )

    def columns(self) -> list[str]:
        """The names of the scores that the answer has, in the order of the table."""
        names = all_asked(self.scores, self.false_alarm_rate, self.importance_samples)
        return [name for name, score in TABLE.items() if score.default or name in names]

    def received(self, responses: Sequence[pb.ScoreResponse]) -> Scores:
        """The scores of one or more responses, in order.

        Raises:
            RequestError: a score that was asked for is not there: the service is older than it.
        """
        scores = messages.scores_of(responses)
        for name in self.columns():
            if getattr(scores, name) is None:
                raise RequestError(
                    grpc.StatusCode.UNIMPLEMENTED,
                    f"the service is older than the score {name!r}; leave it out",
                )
        return scores


def sample_request(
    n: int, temperature: float, seed: int | None, class_name: str, model: str, version: int
) -> pb.SampleRequest:
    """A SampleRequest for n images, in the form of tensors.

    Raises:
        TypeError, ValueError: an argument has a wrong type or is out of range.
    """
    if not isinstance(temperature, Real):
        raise TypeError(f"temperature is {temperature!r}; pass a number")
    if not isinstance(class_name, str):
        raise TypeError(f"class_name is {class_name!r}; pass the name of a class")
    return pb.SampleRequest(
        model=spec(model, version),
        n=_integer("n", n, bits=32),
        temperature=float(temperature),
        seed=_seed(seed),
        format=pb.IMAGE_FORMAT_RAW,
        class_name=class_name,
    )


def explain_request(portion: Portion, model: str, version: int) -> pb.ExplainRequest:
    """An ExplainRequest for a portion of images.

    Raises:
        TypeError, ValueError: the model or the version has a wrong type or is out of range.
    """
    return pb.ExplainRequest(model=spec(model, version), images=messages.images_message(portion))


def set_request(portion: Portion, spec: pb.ModelSpec) -> pb.ScoreSetRequest:
    """One of the requests of a set."""
    return pb.ScoreSetRequest(model=spec, images=messages.images_message(portion))


def encode_request(portion: Portion, model: str, version: int) -> pb.EncodeRequest:
    """An EncodeRequest for a portion of images.

    Raises:
        TypeError, ValueError: the model or the version has a wrong type or is out of range.
    """
    return pb.EncodeRequest(model=spec(model, version), images=messages.images_message(portion))


def decode_request(portion: Portion, model: str, version: int) -> pb.DecodeRequest:
    """A DecodeRequest for latents, float32 [N, D], for images in the form of a tensor.

    Raises:
        TypeError, ValueError: the model or the version has a wrong type or is out of range.
    """
    tensor = messages.float_tensor(np.asarray(portion))
    return pb.DecodeRequest(model=spec(model, version), latents=tensor, format=pb.IMAGE_FORMAT_RAW)


def interpolate_request(
    one: ImageLike, other: ImageLike, steps: int, model: str, version: int
) -> pb.InterpolateRequest:
    """An InterpolateRequest for images in the form of a tensor.

    Raises:
        TypeError, ValueError: the model, the version or the number of steps has a wrong type or is out of range.
        InvalidImageError, OSError, TypeError: see `inputs.together`.
    """
    return pb.InterpolateRequest(
        model=spec(model, version),
        images=messages.images_message(together(one, other)),
        steps=_integer("steps", steps, bits=32),
        format=pb.IMAGE_FORMAT_RAW,
    )


def manipulate_request(
    image: ImageLike | LatentLike,
    attributes: str | Iterable[str],
    strengths: float | Iterable[float],
    model: str,
    version: int,
) -> pb.ManipulateRequest:
    """A ManipulateRequest for images in the form of a tensor.

    Raises:
        TypeError, ValueError: an argument has a wrong type or is out of range.
        InvalidImageError, OSError: see `inputs.image_or_latent`.
    """
    request = pb.ManipulateRequest(
        model=spec(model, version),
        attributes=[attributes] if isinstance(attributes, str) else _names("attributes", attributes),
        strengths=_floats("strengths", strengths),
        format=pb.IMAGE_FORMAT_RAW,
    )
    found = image_or_latent(image)
    if isinstance(found, np.ndarray) and found.dtype == np.float32:
        request.latents.CopyFrom(messages.float_tensor(found))
    else:
        request.images.CopyFrom(messages.images_message(found))
    return request


def model_request(model: str, version: int) -> pb.GetModelRequest:
    """A GetModelRequest.

    Raises:
        TypeError, ValueError: the model or the version has a wrong type or is out of range.
    """
    return pb.GetModelRequest(model=spec(model, version))


def spec(model: str, version: int) -> pb.ModelSpec:
    """A ModelSpec.

    Raises:
        TypeError, ValueError: the model or the version has a wrong type or is out of range.
    """
    if not isinstance(model, str):
        raise TypeError(f"model is {model!r}; pass its name")
    return pb.ModelSpec(name=model, version=_integer("version", version, bits=64))


def _names(argument: str, names: Iterable[str]) -> list[str]:
    """The names in an argument, in their order; the service knows which there are."""
    if isinstance(names, str):
        raise TypeError(f"{argument} is {names!r}; pass a list of names, such as [{names!r}]")
    listed = list(names)
    for name in listed:
        if not isinstance(name, str):
            raise TypeError(f"{argument} has {name!r}; pass names, which are strings")
    return listed


def _floats(argument: str, numbers: float | Iterable[float]) -> list[float]:
    """The numbers in an argument, which may be one."""
    listed = list(numbers) if isinstance(numbers, Iterable) else [numbers]
    for number in listed:
        if not isinstance(number, Real):
            raise TypeError(f"{argument} has {number!r}; pass numbers")
    return [float(number) for number in listed]


def _rate(rate: float | None) -> float | None:
    if rate is not None and not isinstance(rate, Real):
        raise TypeError(f"false_alarm_rate is {rate!r}; pass a number")
    return None if rate is None else float(rate)


def _seed(seed: int | None) -> int | None:
    return None if seed is None else _integer("seed", seed, bits=64)


def _integer(name: str, value: int, bits: int) -> int:
    """The value of an unsigned field. Protobuf's own errors do not name the field."""
    try:
        number = int(operator.index(value))
    except TypeError:
        raise TypeError(f"{name} is {value!r}; pass an integer") from None
    if not 0 <= number < 2**bits:
        raise ValueError(f"{name} is {number}; it must lie in 0 to 2^{bits} - 1")
    return number
