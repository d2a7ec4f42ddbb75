"""Callers that make calls of all kinds and check every answer. They know no pytest: they run in processes of their own.

Shapes: N images, H W C, D = H * W * C.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from glowserve.client import requests as calls
from glowserve.images import UInt8Array, encode_png
from glowserve.messages import (
    image_tensor,
    images_array,
    images_message,
    latent_tensor,
)
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import tensor_pb2
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.wire import SMALL_WINDOW

MOST_IMAGES = 64
MOST_SAMPLES = 100
SEEDS = (1, 2, 3, 4)
TEMPERATURE = 0.7
TIMEOUT = 60.0
# Log-likelihoods, relative; float32 leaves 1e-7.
TOLERANCE = 1e-5

OWN_CONNECTION: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
NO_RETRIES: list[tuple[str, Any]] = [*OWN_CONNECTION, ("grpc.enable_retries", 0)]


class WrongAnswerError(Exception):
    """An answer that is not the known one."""


@dataclass(frozen=True)
class Known:
    """What a version of a model is known to answer, as one's own process computed it."""

    version: int
    images: UInt8Array
    """[N, H, W, C], N at least `MOST_IMAGES`."""
    nats: npt.NDArray[np.float64]
    """Log-likelihoods of these, [N]."""
    latents: npt.NDArray[np.float32]
    """Of these, [N, D]."""
    mismatched: npt.NDArray[np.int64]
    """How many values of each image do not come back from its latent, [N]."""
    decoded: UInt8Array
    """Images of these latents, [N, H, W, C]."""
    samples: dict[int, UInt8Array]
    """By seed, at `TEMPERATURE`: [MOST_SAMPLES, H, W, C]."""

    @classmethod
    def of(cls, model: Any, images: UInt8Array) -> Known:
        """Asks a model that was opened with `glowserve.open`."""
        scores, encodings = model.score(images), model.encode(images)
        samples = {
            seed: model.sample(MOST_SAMPLES, seed=seed, temperature=TEMPERATURE).images for seed in SEEDS
        }
        decoded, mismatched = model.decode(encodings.latents), encodings.mismatched_values
        return cls(
            scores.version, images, scores.log_likelihood, encodings.latents, mismatched, decoded, samples
        )


class Caller:
    """Makes calls on one connection, and checks the answers.

    Args:
        channel: the connection.
        known: what each version answers, by version; an answer has to be the one of the version that it names.
        wait: whether calls wait for a connection, however long that takes, instead of failing.
    """

    def __init__(self, channel: grpc.aio.Channel, known: dict[int, Known], *, wait: bool = False) -> None:
        self._glow = GlowServiceStub(channel)
        self._oip = GRPCInferenceServiceStub(channel)
        self._known = known
        self._any = next(iter(known.values()))
        self._png = [encode_png(image) for image in self._any.images]
        self.reasons: list[str] = []
        """What was said with the codes of `LEFT_TO_TESTS`."""
        self._how: dict[str, Any] = {"timeout": TIMEOUT, "wait_for_ready": wait}

    async def call(self, kind: str, luck: random.Random, request_id: str = "") -> str:
        """Makes a call of a kind.

        Args:
            kind: a key of `KINDS`.
            luck: decides its size and the like.
            request_id: goes into the server's log; none: the server makes one.

        Returns:
            The name of the status code; "GIVEN_UP" if the call was cancelled here.

        Raises:
            WrongAnswerError: the answer, or the code, is not one that it may have.
        """
        how = self._how | ({"metadata": (("x-request-id", request_id),)} if request_id else {})
        method, codes = KINDS[kind]
        try:
            code = await method(self, luck, how) or "OK"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            if code not in codes and code not in LEFT_TO_TESTS:
                raise WrongAnswerError(f"{kind} ended with {code}: {error.details()}") from error
            if code in LEFT_TO_TESTS:
                self.reasons.append(f"{code}: {error.details()}")
            return code
        if code not in codes:
            raise WrongAnswerError(f"{kind} ended with {code}; expected {', '.join(codes)}")
        return code

    async def _score(self, luck: random.Random, how: dict[str, Any]) -> None:
        first, n = self._some(luck)
        images = images_message(self._any.images[first : first + n])
        self._check_scores(await self._glow.Score(pb.ScoreRequest(images=images), **how), first, n)

    async def _score_png(self, luck: random.Random, how: dict[str, Any]) -> None:
        first, n = self._some(luck)
        images = images_message(self._png[first : first + n])
        self._check_scores(await self._glow.Score(pb.ScoreRequest(images=images), **how), first, n)

    async def _sample(self, luck: random.Random, how: dict[str, Any]) -> None:
        n, seed = _size(luck, MOST_SAMPLES), luck.choice(SEEDS)
        request = self._sample_request(n, seed)
        came = 0
        async for response in self._glow.Sample(request, **how):
            _check(response.first_index == came, f"samples from {response.first_index} came after {came}")
            came += self._check_samples(response, seed)
        _check(came == n, f"{came} of {n} samples came")

    async def _encode(self, luck: random.Random, how: dict[str, Any]) -> None:
        first, n = self._some(luck)
        images = images_message(self._any.images[first : first + n])
        response = await self._glow.Encode(pb.EncodeRequest(images=images), **how)
        known = self._of(response)
        wanted, mismatched = known.latents[first : first + n], known.mismatched[first : first + n]
        latents = np.frombuffer(response.latents.data, "<f4").reshape(tuple(response.latents.shape))
        _check(latents.shape == wanted.shape, f"latents have shape {latents.shape}")
        _check(bool(np.allclose(latents, wanted, rtol=1e-4, atol=1e-4)), "latents are others")
        _check(
            bool(np.array_equal(response.mismatched_values, mismatched)), "latents hold more or fewer values"
        )

    async def _decode(self, luck: random.Random, how: dict[str, Any]) -> None:
        first, n = self._some(luck)
        request = pb.DecodeRequest(
            latents=latent_tensor(self._any.latents[first : first + n]), format=pb.IMAGE_FORMAT_RAW
        )
        response = await self._glow.Decode(request, **how)
        wanted = self._of(response).decoded[first : first + n]
        _check(bool(np.array_equal(images_array(response.images), wanted)), "decoded images are others")

    async def _list(self, luck: random.Random, how: dict[str, Any]) -> None:
        response = await self._glow.ListModels(pb.ListModelsRequest(), **how)
        _check(len(response.models) == 1, f"{len(response.models)} models are listed")
        _check(response.models[0].model.version in self._known, "an unknown version is listed")

    async def _infer(self, luck: random.Random, how: dict[str, Any]) -> None:
        first, n = self._some(luck)
        response = await self._oip.ModelInfer(infer_request(self._any.images[first : first + n]), **how)
        names = [output.name for output in response.outputs]
        nats = np.frombuffer(response.raw_output_contents[names.index("log_likelihood")], "<f8")
        self._check_nats(nats, self._known[int(response.model_version)], first, n)

    async def _cancelled(self, luck: random.Random, how: dict[str, Any]) -> str | None:
        """A Score that is given up after up to 10 ms, if it has not been answered by then."""
        first, n = self._some(luck)
        images = images_message(self._any.images[first : first + n])
        call = self._glow.Score(pb.ScoreRequest(images=images), **how)
        await asyncio.sleep(luck.uniform(0, 0.01))
        if call.cancel():
            return "GIVEN_UP"
        self._check_scores(await call, first, n)
        return None

    async def _cancelled_stream(self, luck: random.Random, how: dict[str, Any]) -> str:
        """A Sample of which the first message is read."""
        seed = luck.choice(SEEDS)
        call = self._glow.Sample(self._sample_request(MOST_SAMPLES, seed), **how)
        response = await call.read()
        if response is grpc.aio.EOF:
            await call  # raises what it ended with
        self._check_samples(response, seed)
        call.cancel()
        return "GIVEN_UP"

    async def _hurried(self, luck: random.Random, how: dict[str, Any]) -> None:
        """A Score of `MOST_IMAGES`, with a deadline of 0.1 to 10 ms."""
        images = images_message(self._any.images[:MOST_IMAGES])
        how = how | {"timeout": 10 ** luck.uniform(-4, -2)}
        self._check_scores(await self._glow.Score(pb.ScoreRequest(images=images), **how), 0, MOST_IMAGES)

    async def _malformed(self, luck: random.Random, how: dict[str, Any]) -> None:
        await luck.choice(_MALFORMED)(self, luck, how)

    async def _wrong_shape(self, luck: random.Random, how: dict[str, Any]) -> None:
        tensor = image_tensor(self._any.images[:2, 1:])
        await self._glow.Score(pb.ScoreRequest(images=pb.Images(tensor=tensor)), **how)

    async def _wrong_length(self, luck: random.Random, how: dict[str, Any]) -> None:
        tensor = image_tensor(self._any.images[:2])
        tensor.data = tensor.data[:-1]
        await self._glow.Encode(pb.EncodeRequest(images=pb.Images(tensor=tensor)), **how)

    async def _no_picture(self, luck: random.Random, how: dict[str, Any]) -> None:
        images = pb.Images(encoded=pb.EncodedImages(data=[self._png[0][:-20], b"no picture"]))
        await self._glow.Score(pb.ScoreRequest(images=images), **how)

    async def _no_images(self, luck: random.Random, how: dict[str, Any]) -> None:
        await self._glow.Score(pb.ScoreRequest(), **how)

    async def _no_samples(self, luck: random.Random, how: dict[str, Any]) -> None:
        async for _ in self._glow.Sample(pb.SampleRequest(n=0), **how):
            pass

    async def _no_number(self, luck: random.Random, how: dict[str, Any]) -> None:
        latents = latent_tensor(np.full_like(self._any.latents[:1], math.nan))
        await self._glow.Decode(pb.DecodeRequest(latents=latents), **how)

    async def _wrong_type(self, luck: random.Random, how: dict[str, Any]) -> None:
        tensor = image_tensor(self._any.images[:1])
        tensor.dtype = tensor_pb2.DATA_TYPE_FLOAT32
        await self._glow.Score(pb.ScoreRequest(images=pb.Images(tensor=tensor)), **how)

    async def _missing_input(self, luck: random.Random, how: dict[str, Any]) -> None:
        await self._oip.ModelInfer(oip.ModelInferRequest(model_name="digits"), **how)

    def _some(self, luck: random.Random) -> tuple[int, int]:
        """First image and number of images: small numbers are as likely as large ones."""
        n = _size(luck, MOST_IMAGES)
        return luck.randrange(len(self._any.images) - n + 1), n

    def _sample_request(self, n: int, seed: int) -> pb.SampleRequest:
        return pb.SampleRequest(n=n, seed=seed, temperature=TEMPERATURE, format=pb.IMAGE_FORMAT_RAW)

    def _of(self, response: Any) -> Known:
        _check(response.model.version in self._known, f"version {response.model.version} answered")
        return self._known[response.model.version]

    def _check_scores(self, response: pb.ScoreResponse, first: int, n: int) -> None:
        nats = np.array([score.log_likelihood for score in response.scores])
        self._check_nats(nats, self._of(response), first, n)

    def _check_nats(self, nats: npt.NDArray[Any], known: Known, first: int, n: int) -> None:
        wanted = known.nats[first : first + n]
        _check(nats.shape == wanted.shape, f"{len(nats)} scores of {n} came")
        worst = float(np.max(np.abs(nats / wanted - 1)))
        _check(worst <= TOLERANCE, f"scores of version {known.version} are others, by {worst:.2g}")

    def _check_samples(self, response: pb.SampleResponse, seed: int) -> int:
        """How many there are."""
        images, first = images_array(response.images), response.first_index
        wanted = self._of(response).samples[seed][first : first + len(images)]
        _check(
            bool(np.array_equal(images, wanted)), f"samples of version {response.model.version} are others"
        )
        return len(images)


_MALFORMED: tuple[Callable[..., Coroutine[Any, Any, None]], ...] = (
    Caller._wrong_shape,
    Caller._wrong_length,
    Caller._no_picture,
    Caller._no_images,
    Caller._no_samples,
    Caller._no_number,
    Caller._wrong_type,
    Caller._missing_input,
)

_HURRIED_CODES = ("OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
KINDS: dict[str, tuple[Callable[..., Coroutine[Any, Any, str | None]], tuple[str, ...]]] = {
    "score": (Caller._score, ("OK",)),
    "score_png": (Caller._score_png, ("OK",)),
    "sample": (Caller._sample, ("OK",)),
    "encode": (Caller._encode, ("OK",)),
    "decode": (Caller._decode, ("OK",)),
    "list": (Caller._list, ("OK",)),
    "infer": (Caller._infer, ("OK",)),
    "cancelled": (Caller._cancelled, ("OK", "GIVEN_UP")),
    "cancelled_stream": (Caller._cancelled_stream, ("GIVEN_UP",)),
    "hurried": (Caller._hurried, _HURRIED_CODES),
    "malformed": (Caller._malformed, ("INVALID_ARGUMENT",)),
}
"""Kinds of calls: the method that makes one, and the codes that it may end with, beside `LEFT_TO_TESTS`."""

LEFT_TO_TESTS = ("UNAVAILABLE", "CANCELLED")
"""What gRPC says where a server stops; a test has to know whether it did."""

METHODS = {
    "score": "Score",
    "score_png": "Score",
    "sample": "Sample",
    "encode": "Encode",
    "decode": "Decode",
    "list": "ListModels",
    "infer": "ModelInfer",
}
WELL_BEHAVED = tuple(METHODS)
"""Kinds whose calls end with OK."""

Mixture = dict[str, int]
"""How many calls of each kind there are for how many of the others."""

AWAITED: Mixture = {
    "score": 34,
    "score_png": 6,
    "sample": 13,
    "encode": 9,
    "decode": 12,
    "list": 11,
    "infer": 11,
    "malformed": 4,
}
"""Calls whose callers wait for the answer."""
GIVEN_UP: Mixture = {"cancelled": 4, "cancelled_stream": 3, "hurried": 4}
"""Calls that may be given up before."""


@dataclass
class Report:
    """What became of the calls of one process."""

    codes: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Kind and code by request id."""
    wrong: list[str] = field(default_factory=list)
    """Sentences about answers that were wrong."""


def make_calls(target: str, known: Known, mixture: Mixture, name: str, n: int, concurrency: int) -> Report:
    """Makes n calls of a mixture, so many at a time, in this process; their ids are NAME-0, NAME-1 and so on."""
    return asyncio.run(_make_calls(target, known, mixture, name, n, concurrency))


async def _make_calls(
    target: str, known: Known, mixture: Mixture, name: str, n: int, concurrency: int
) -> Report:
    report, numbers = Report(), iter(range(n))
    kinds, weights = list(mixture), list(mixture.values())

    async def work(caller: Caller) -> None:
        for number in numbers:
            request_id = f"{name}-{number}"
            luck = random.Random(request_id)
            (kind,) = luck.choices(kinds, weights)
            try:
                code = await caller.call(kind, luck, request_id)
                if code in LEFT_TO_TESTS:
                    report.wrong.append(f"{request_id}: {kind} ended with {code}")
            except WrongAnswerError as error:
                code = "WRONG"
                report.wrong.append(f"{request_id}: {error}")
            report.codes[request_id] = kind, code

    async with grpc.aio.insecure_channel(target, OWN_CONNECTION) as channel:
        caller = Caller(channel, {known.version: known})
        await asyncio.gather(*(work(caller) for _ in range(concurrency)))
    return report


def open_streams(target: str, known: Known, n: int, samples: int, report: Any) -> None:
    """Opens n streams, each on a connection of its own, reads a message of every other, and then reads no more.

    Half of them are Sample, half ModelStreamInfer, whose requests keep coming for as long as they are taken. Ends when
    it is killed.

    Args:
        target: HOST:PORT.
        known: of the model.
        n: how many.
        samples: how many each Sample asks for.
        report: where True is sent once all are open.
    """
    asyncio.run(_open_streams(target, known, n, samples, report))


async def _open_streams(target: str, known: Known, n: int, samples: int, report: Any) -> None:
    request = infer_request(known.images[:1])

    async def write_all(call: Any) -> None:
        while True:
            await call.write(request)

    streams, writers = [], []
    for i in range(n):
        channel = grpc.aio.insecure_channel(target, [*OWN_CONNECTION, *SMALL_WINDOW])
        if i % 2:
            call = GlowServiceStub(channel).Sample(pb.SampleRequest(n=samples, seed=i))
        else:
            call = GRPCInferenceServiceStub(channel).ModelStreamInfer()
            writers.append(asyncio.create_task(write_all(call)))
        if i % 4 < 2:
            await call.read()
        streams.append((channel, call))
    report.put(True)
    await asyncio.sleep(3600)


def infer_request(images: UInt8Array) -> oip.ModelInferRequest:
    """Images [N, H, W, C] for ModelInfer."""
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=images.shape)
    return oip.ModelInferRequest(model_name="digits", inputs=[tensor], raw_input_contents=[images.tobytes()])


def spread_options() -> list[tuple[str, Any]]:
    """The client's own options, its retries among them, for calls that take turns between the healthy servers."""
    options = dict(calls.CHANNEL_OPTIONS)
    service = json.loads(options["grpc.service_config"]) | {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": "glowserve.v1.GlowService"},
    }
    # The client asks GlowService alone, and so retries its calls alone; here there are those of the other service, too.
    service["methodConfig"][0]["name"].append({"service": "inference.GRPCInferenceService"})
    options |= {"grpc.service_config": json.dumps(service), "grpc.max_reconnect_backoff_ms": 500}
    return [*options.items(), *OWN_CONNECTION]


def _size(luck: random.Random, most: int) -> int:
    return int(math.exp(luck.uniform(0, math.log(most + 1))))


def _check(fine: bool, sentence: str) -> None:
    if not fine:
        raise WrongAnswerError(sentence)
