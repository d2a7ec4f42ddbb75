"""The methods of GlowService, from request message to response message, on any runner.

The service and the client's embedded transport share these functions. protos/glowserve/v1/glow_service.proto explains
each method.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from glowserve import messages
from glowserve.images import UInt8Array, encode_png
from glowserve.pictures import Pictures
from glowserve.runtime import inputs, operations
from glowserve.runtime.asked import asked_of
from glowserve.runtime.attributes import check_attributes
from glowserve.runtime.checks import BoolArray
from glowserve.runtime.classes import class_number, class_numbers, scorer_given_class
from glowserve.runtime.draws import Draw
from glowserve.runtime.engine import Float32Array, Placement
from glowserve.runtime.errors import InvalidRequestError, NotFiniteError
from glowserve.runtime.explanation import check_explainable
from glowserve.runtime.inputs import ImageSource
from glowserve.runtime.randomness import DEFAULT_SEED
from glowserve.runtime.runner import SERIALIZATION, Runner, Work
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.manifest_pb2 import Manifest


async def score(runner: Runner, request: pb.ScoreRequest) -> pb.ScoreResponse:
    """GlowService.Score.

    Raises:
        NotCalibratedError: the bundle lacks the calibration that a score needs.
        GlowserveError: the request is malformed, or the runner refuses it.
    """
    seed = request.seed if request.HasField("seed") else DEFAULT_SEED
    images = inputs.image_source(request.images, runner.bundle, runner.limits)
    classes = class_numbers(request.classes, images.count, runner.bundle)
    scorer = runner.scorer if classes is None else scorer_given_class(runner.bundle, runner.class_scorer)
    asked = asked_of(request, runner.bundle, scorer)
    runner.expect(images.count)
    return messages.scores_message(await operations.score(runner, images, seed, asked, classes))


async def explain(runner: Runner, request: pb.ExplainRequest) -> pb.ExplainResponse:
    """GlowService.Explain.

    Raises:
        MissingFileError, NotCalibratedError: the bundle lacks what images are compared with.
        GlowserveError: the request is malformed, the graph cannot be opened, or the runner refuses the request.
    """
    images = inputs.image_source(request.images, runner.bundle, runner.limits)
    check_explainable(runner.bundle, runner.scorer)
    runner.expect(images.count)
    explained = await operations.explain(runner, images)
    size = explained.deviations.nbytes
    return await runner.compute(
        Work(lambda: messages.explanations_message(explained), images.count, size, SERIALIZATION)
    )


# A call whose first samples have no image, not one of them, would go on for nothing.
_ENOUGH_TO_GIVE_UP = 256


class SampleCall:
    """A call of GlowService.Sample, which is answered in parts of one batch each.

    Args:
        runner: gives the limits.
        request: the request.

    Raises:
        InvalidRequestError: the request is malformed.
    """

    def __init__(self, runner: Runner, request: pb.SampleRequest) -> None:
        inputs.check_samples(request.n, runner.limits.max_samples)
        runner.expect(request.n)
        self._temperature = request.temperature if request.HasField("temperature") else 1.0
        inputs.check_temperature(self._temperature)
        inputs.check_format(request.format)
        self._class = (
            class_number(request.class_name, runner.bundle, "class_name") if request.class_name else None
        )
        self._seed = request.seed if request.HasField("seed") else secrets.randbits(64)
        self._n, self._format = request.n, request.format
        self._part_size = runner.limits.max_batch_size
        self._sent = self._images_sent = 0

    def parts(self) -> Iterator[range]:
        """The indices of the samples of each part."""
        for first in range(0, self._n, self._part_size):
            yield range(first, min(first + self._part_size, self._n))

    async def answer(self, runner: Runner, part: range) -> list[pb.SampleResponse]:
        """The responses with the samples of a part, in order: one, and one more for each gap between finite samples.

        Args:
            runner: runs the part.
            part: the indices of the samples.

        Raises:
            GlowserveError: the runner refuses the part.
        """
        draws = [Draw(self._seed, index, self._temperature, self._class) for index in part]
        drawn = await operations.sample(runner, draws)
        responses = [
            pb.SampleResponse(
                model=_version(runner),
                seed=self._seed,
                first_index=part.start + run.start,
                images=await _images_message(runner, drawn.images[run], self._format),
            )
            for run in _runs(drawn.finite)
        ]
        responses[0].not_finite.extend((part.start + np.flatnonzero(~drawn.finite)).tolist())
        return responses

    def sent(self, responses: Sequence[pb.SampleResponse]) -> None:
        """To be called when the responses of a part have been sent, part after part.

        Raises:
            NotFiniteError: no sample so far is finite, and there are no more, or enough to give up. The responses count
                them.
        """
        images = sum(messages.count(response.images) for response in responses)
        self._images_sent += images
        self._sent += images + sum(len(response.not_finite) for response in responses)
        if not self._images_sent and self._sent >= min(self._n, _ENOUGH_TO_GIVE_UP):
            which = f"sample of {self._n}" if self._sent == self._n else f"of the first {self._sent} samples"
            raise NotFiniteError(
                f"temperature is {self._temperature:g}: not one {which} is finite; lower the temperature, or train the "
                "model longer",
                0,
            )


def _runs(finite: BoolArray) -> list[slice]:
    """The rows of finite samples that follow one another; one empty run if no sample is finite."""
    ends = np.flatnonzero(np.diff(finite, prepend=False, append=False))
    return [slice(*run) for run in ends.reshape(-1, 2).tolist()] or [slice(0, 0)]


async def encode(runner: Runner, request: pb.EncodeRequest) -> pb.EncodeResponse:
    """GlowService.Encode.

    Raises:
        NotFiniteError: a latent is not finite.
        GlowserveError: the request is malformed, or the runner refuses it.
    """
    images = inputs.image_source(request.images, runner.bundle, runner.limits)
    runner.expect(images.count)
    encoded = await operations.encode(runner, images)
    return pb.EncodeResponse(
        model=_version(runner),
        latents=messages.float_tensor(encoded.latents),
        mismatched_values=encoded.mismatched_values.tolist(),
    )


async def decode(runner: Runner, request: pb.DecodeRequest) -> pb.DecodeResponse:
    """GlowService.Decode.

    Raises:
        NotFiniteError: an image is not finite.
        GlowserveError: the request is malformed, or the runner refuses it.
    """
    inputs.check_format(request.format)
    latents = inputs.read_latents(request.latents, runner.bundle, max_images=runner.limits.max_images)
    runner.expect(len(latents))
    images = await operations.decode(runner, latents)
    return pb.DecodeResponse(
        model=_version(runner), images=await _images_message(runner, images, request.format)
    )


async def interpolate(runner: Runner, request: pb.InterpolateRequest) -> pb.InterpolateResponse:
    """GlowService.Interpolate.

    Raises:
        NotFiniteError: a latent or an image is not finite.
        GlowserveError: the request is malformed, or the runner refuses it.
    """
    inputs.check_steps(request.steps, runner.limits.max_images)
    inputs.check_format(request.format)
    inputs.check_number(request.images, 2, "two, the first and the last")
    pair = inputs.image_source(request.images, runner.bundle, runner.limits)
    runner.expect(pair.count + request.steps)
    images = await operations.interpolate(runner, pair, request.steps)
    return pb.InterpolateResponse(
        model=_version(runner), images=await _images_message(runner, images, request.format)
    )


async def manipulate(runner: Runner, request: pb.ManipulateRequest) -> pb.ManipulateResponse:
    """GlowService.Manipulate.

    Raises:
        MissingFileError: the bundle has no attributes.
        NotFiniteError: a latent or an image is not finite.
        GlowserveError: the request is malformed, or the runner refuses it.
    """
    check_attributes(request.attributes, runner.attributes, runner.bundle)
    inputs.check_strengths(request.strengths, runner.limits.max_images)
    inputs.check_format(request.format)
    given = _image_or_latent(runner, request)
    encoded = 0 if isinstance(given, np.ndarray) else given.count
    runner.expect(encoded + len(request.strengths))
    images = await operations.manipulate(runner, given, request.attributes, request.strengths)
    return pb.ManipulateResponse(
        model=_version(runner), images=await _images_message(runner, images, request.format)
    )


def _image_or_latent(runner: Runner, request: pb.ManipulateRequest) -> ImageSource | Pictures | Float32Array:
    """The image that a request has, or its latent, float32 [1, D].

    Raises:
        InvalidRequestError: it is malformed, or the request has neither.
    """
    if request.HasField("latents"):
        latents = inputs.read_latents(request.latents, runner.bundle, max_images=runner.limits.max_images)
        if len(latents) != 1:
            raise InvalidRequestError(
                f"latents.shape[0]: {len(latents)} latents; it takes one", "latents.shape[0]"
            )
        return latents
    if not request.HasField("images"):
        raise InvalidRequestError(
            "images is empty: set images or latents, with one image or its latent", "images"
        )
    inputs.check_number(request.images, 1, "one")
    return inputs.image_source(request.images, runner.bundle, runner.limits)


def get_model(manifest: Manifest, placements: Iterable[Placement]) -> pb.GetModelResponse:
    """GlowService.GetModel, for a bundle's manifest and the execution providers of its graphs."""
    graphs = [
        pb.GraphPlacement(graph=each.graph, provider=each.provider, nodes=each.nodes) for each in placements
    ]
    return pb.GetModelResponse(manifest=manifest, graphs=graphs)


async def _images_message(runner: Runner, images: UInt8Array, form: pb.ImageFormat) -> pb.Images:
    """Images, uint8 [N, H, W, C], as a message in a format."""
    if form == pb.IMAGE_FORMAT_RAW:
        return messages.images_message(images)
    files = await runner.compute(
        Work(lambda: [encode_png(image) for image in images], len(images), images.nbytes, SERIALIZATION)
    )
    return messages.images_message(files)


def _version(runner: Runner) -> pb.ModelVersion:
    manifest = runner.bundle.manifest
    return pb.ModelVersion(name=manifest.model, version=manifest.version)
