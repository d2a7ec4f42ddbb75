"""Callers that make calls of all kinds and check every answer. They also run in processes without pytest."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from glowserve.client.transports.channel import CHANNEL_OPTIONS
from glowserve.images import UInt8Array, encode_png
from glowserve.messages import float_tensor, images_message
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.soak.known_answers import (
    MAX_IMAGES,
    MAX_SAMPLES,
    SEEDS,
    TEMPERATURE,
    KnownAnswers,
    WrongAnswerError,
    check,
)
from tests.soak.malformed import malformed_requests

TIMEOUT_SECONDS = 60.0

OWN_CONNECTION: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
NO_RETRIES: list[tuple[str, Any]] = [*OWN_CONNECTION, ("grpc.enable_retries", 0)]


@dataclass(frozen=True)
class Outcome:
    """How a call ended."""

    code: str
    """The name of the status code; "ABANDONED" if the caller cancelled the call."""
    message: str = ""
    """Of the status."""


class Caller:
    """Makes calls on one connection, and checks the answers.

    Args:
        channel: the connection.
        known: the known answers by version; an answer must be the one of the version that it names.
        wait_for_ready: whether calls wait for a connection instead of failing without one.
    """

    def __init__(
        self, channel: grpc.aio.Channel, known: Mapping[int, KnownAnswers], *, wait_for_ready: bool = False
    ) -> None:
        self._glow = GlowServiceStub(channel)
        self._inference = GRPCInferenceServiceStub(channel)
        self._known = known
        self._inputs = next(iter(known.values()))
        self._png = [encode_png(image) for image in self._inputs.images]
        self._malformed = malformed_requests(self._inputs)
        self._options: dict[str, Any] = {"timeout": TIMEOUT_SECONDS, "wait_for_ready": wait_for_ready}

    async def call(self, kind: str, rng: random.Random, request_id: str = "") -> Outcome:
        """Makes a call.

        Args:
            kind: a key of `KINDS`.
            rng: chooses its images, their number and the like.
            request_id: appears in the server's log; "": the server chooses one.

        Raises:
            WrongAnswerError: the answer is wrong, or a call of this kind must not end with that code.
        """
        options = self._options | ({"metadata": (("x-request-id", request_id),)} if request_id else {})
        method, codes = KINDS[kind]
        try:
            outcome = Outcome(await method(self, rng, options) or "OK")
        except grpc.aio.AioRpcError as error:
            outcome = Outcome(error.code().name, error.details() or "")
        if outcome.code not in (*codes, *SERVER_STOPPED):
            raise WrongAnswerError(
                f"{kind} ended with {outcome.code} {outcome.message!r}; expected {', '.join(codes)}"
            )
        return outcome

    async def _score(self, rng: random.Random, options: dict[str, Any]) -> None:
        first, n = _some_images(rng, self._inputs.images)
        await self._score_images(self._inputs.images[first : first + n], first, options)

    async def _score_png(self, rng: random.Random, options: dict[str, Any]) -> None:
        first, n = _some_images(rng, self._inputs.images)
        await self._score_images(self._png[first : first + n], first, options)

    async def _score_images(self, images: list[bytes] | UInt8Array, first: int, options: Any) -> None:
        response = await self._glow.Score(pb.ScoreRequest(images=images_message(images)), **options)
        self._check_scores(response, first, len(images))

    async def _sample(self, rng: random.Random, options: dict[str, Any]) -> None:
        n, seed, received = _size(rng, MAX_SAMPLES), rng.choice(SEEDS), 0
        async for response in self._glow.Sample(_sample_request(n, seed), **options):
            check(
                response.first_index == received,
                f"first_index is {response.first_index} after {received} samples",
            )
            received += self._version_of(response).check_samples(response, seed)
        check(received == n, f"the answer has {received} samples of {n}")

    async def _encode(self, rng: random.Random, options: dict[str, Any]) -> None:
        first, n = _some_images(rng, self._inputs.images)
        images = images_message(self._inputs.images[first : first + n])
        response = await self._glow.Encode(pb.EncodeRequest(images=images), **options)
        self._version_of(response).check_encoding(response, first, n)

    async def _decode(self, rng: random.Random, options: dict[str, Any]) -> None:
        first, n = _some_images(rng, self._inputs.images)
        latents = float_tensor(self._inputs.latents[first : first + n])
        request = pb.DecodeRequest(latents=latents, format=pb.IMAGE_FORMAT_RAW)
        response = await self._glow.Decode(request, **options)
        self._version_of(response).check_decoding(response, first, n)

    async def _list_models(self, rng: random.Random, options: dict[str, Any]) -> None:
        response = await self._glow.ListModels(pb.ListModelsRequest(), **options)
        check(len(response.models) == 1, f"{len(response.models)} models are listed")
        self._version_of(response.models[0])

    async def _infer(self, rng: random.Random, options: dict[str, Any]) -> None:
        first, n = _some_images(rng, self._inputs.images)
        request = infer_request(self._inputs.images[first : first + n])
        response = await self._inference.ModelInfer(request, **options)
        names = [output.name for output in response.outputs]
        nats = np.frombuffer(response.raw_output_contents[names.index("log_likelihood")], "<f8")
        self._known[int(response.model_version)].check_scores(nats, first, n)

    async def _cancelled(self, rng: random.Random, options: dict[str, Any]) -> str | None:
        """A Score that is cancelled after up to 10 ms, unless it is answered by then."""
        first, n = _some_images(rng, self._inputs.images)
        images = images_message(self._inputs.images[first : first + n])
        call = self._glow.Score(pb.ScoreRequest(images=images), **options)
        await asyncio.sleep(rng.uniform(0, 0.01))
        if call.cancel():
            return "ABANDONED"
        self._check_scores(await call, first, n)
        return None

    async def _cancelled_stream(self, rng: random.Random, options: dict[str, Any]) -> str:
        """A Sample that is cancelled after its first response."""
        seed = rng.choice(SEEDS)
        call = self._glow.Sample(_sample_request(MAX_SAMPLES, seed), **options)
        response = await call.read()
        check(response is not grpc.aio.EOF, "the answer has no samples")
        self._version_of(response).check_samples(response, seed)
        call.cancel()
        return "ABANDONED"

    async def _short_deadline(self, rng: random.Random, options: dict[str, Any]) -> None:
        """A Score of `MAX_IMAGES`, with a deadline of 0.1 to 10 ms."""
        options = options | {"timeout": 10 ** rng.uniform(-4, -2)}
        await self._score_images(self._inputs.images[:MAX_IMAGES], 0, options)

    async def _malformed_call(self, rng: random.Random, options: dict[str, Any]) -> None:
        request = rng.choice(self._malformed)
        name = type(request).__name__.removesuffix("Request")
        service = self._inference if isinstance(request, oip.ModelInferRequest) else self._glow
        call = getattr(service, name)(request, **options)
        await (call.read() if name == "Sample" else call)

    def _version_of(self, response: Any) -> KnownAnswers:
        version = response.model.version
        check(version in self._known, f"version {version} answered, which is unknown")
        return self._known[version]

    def _check_scores(self, response: pb.ScoreResponse, first: int, n: int) -> None:
        nats = np.array([score.log_likelihood for score in response.scores])
        self._version_of(response).check_scores(nats, first, n)


SERVER_STOPPED = ("UNAVAILABLE", "CANCELLED")
"""Codes of calls to a server that stops. A call of any kind may end with them; a test must know whether it did."""

KINDS: dict[str, tuple[Callable[..., Coroutine[Any, Any, str | None]], tuple[str, ...]]] = {
    "score": (Caller._score, ("OK",)),
    "score_png": (Caller._score_png, ("OK",)),
    "sample": (Caller._sample, ("OK",)),
    "encode": (Caller._encode, ("OK",)),
    "decode": (Caller._decode, ("OK",)),
    "list": (Caller._list_models, ("OK",)),
    "infer": (Caller._infer, ("OK",)),
    "cancelled": (Caller._cancelled, ("OK", "ABANDONED")),
    "cancelled_stream": (Caller._cancelled_stream, ("ABANDONED",)),
    "short_deadline": (Caller._short_deadline, ("OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")),
    "malformed": (Caller._malformed_call, ("INVALID_ARGUMENT",)),
}
"""Kinds of calls: the method that makes one, and the codes that it may end with, besides `SERVER_STOPPED`."""

WELL_BEHAVED = tuple(kind for kind, (_, codes) in KINDS.items() if codes == ("OK",))
"""The kinds whose calls end with OK."""


def infer_request(images: UInt8Array) -> oip.ModelInferRequest:
    """A ModelInfer of images [N, H, W, C]."""
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=images.shape)
    return oip.ModelInferRequest(model_name="digits", inputs=[tensor], raw_input_contents=[images.tobytes()])


def round_robin_options() -> list[tuple[str, Any]]:
    """The channel options of our client, retries included, for calls that take turns between healthy servers."""
    options = dict(CHANNEL_OPTIONS)
    service = json.loads(options["grpc.service_config"]) | {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": "glowserve.v1.GlowService"},
    }
    # Our client calls, and so retries, GlowService alone; callers here call the other service too.
    service["methodConfig"][0]["name"].append({"service": "inference.GRPCInferenceService"})
    options |= {"grpc.service_config": json.dumps(service), "grpc.max_reconnect_backoff_ms": 500}
    return [*options.items(), *OWN_CONNECTION]


def _sample_request(n: int, seed: int) -> pb.SampleRequest:
    return pb.SampleRequest(n=n, seed=seed, temperature=TEMPERATURE, format=pb.IMAGE_FORMAT_RAW)


def _some_images(rng: random.Random, images: UInt8Array) -> tuple[int, int]:
    """The index of the first image, and the number of images: small numbers are as likely as large ones."""
    n = _size(rng, MAX_IMAGES)
    return rng.randrange(len(images) - n + 1), n


def _size(rng: random.Random, largest: int) -> int:
    return int(math.exp(rng.uniform(0, math.log(largest + 1))))
