"""The client for event loops: `Client` with `await`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from types import TracebackType

import numpy as np
import numpy.typing as npt

from glowserve import messages
from glowserve.client import requests
from glowserve.client.class_names import ClassNames
from glowserve.client.errors import RequestError
from glowserve.client.fitting import Fitting
from glowserve.client.inputs import ImageLike, ImagesLike, LatentLike, Portion, latent_portions, portions
from glowserve.client.reading import Reading
from glowserve.client.set_requests import SetRequests
from glowserve.client.transports.base import AsyncTransport
from glowserve.client.transports.channel import TIMEOUT_SECONDS, ChannelSettings, check_transport
from glowserve.client.transports.grpc_asyncio import AsyncGrpcTransport
from glowserve.credentials import FilePath
from glowserve.images import UInt8Array
from glowserve.results import Encodings, Explanations, ModelInfo, Samples, ScoredImages, SetScore
from glowserve.scores import Scores
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.manifest_pb2 import Manifest


class AsyncClient:
    """Calls a running service from an event loop. `Client` explains the calls and the arguments.

    Files are read, and pictures encoded, in threads beside the event loop. A client may be made before a loop runs, and
    used in several loops, one after the other or side by side in threads: each has a connection of its own. It can be
    pickled like a `Client`. In a process that was forked while an AsyncClient was connected, calls raise RuntimeError.

    Args:
        target: HOST:PORT of the service; the port is 8001 if left out.
        timeout: how many seconds a call may take, retries included; math.inf for no limit.
        tls: encrypt, and trust the authorities that gRPC trusts.
        ca: trust this authority instead: a PEM file.
        cert: the client's certificate: a PEM file.
        key: the key of the client's certificate: a PEM file.
        token: authenticates the caller.
        transport: carries the requests instead of gRPC. With a transport there is no target, and no setting of one.

    Raises:
        TypeError: the target is not a string.
        ValueError: there is neither a target nor a transport, the target is none, the timeout is not above 0, a file
            cannot be used, or the token would cross a network unencrypted.
    """

    def __init__(
        self,
        target: str = "",
        *,
        timeout: float = TIMEOUT_SECONDS,
        tls: bool = False,
        ca: FilePath | None = None,
        cert: FilePath | None = None,
        key: FilePath | None = None,
        token: str | None = None,
        transport: AsyncTransport | None = None,
    ) -> None:
        settings = ChannelSettings(
            target=target, timeout=timeout, tls=tls, ca=ca, cert=cert, key=key, token=token
        )
        check_transport(settings, transport)
        self._carrier: AsyncTransport | None = transport or AsyncGrpcTransport(settings)
        self._fitting = Fitting()

    @property
    def _transport(self) -> AsyncTransport:
        if self._carrier is None:
            raise ValueError("the client is closed; make another")
        return self._carrier

    async def score(
        self,
        images: ImagesLike,
        *,
        scores: Iterable[str] = (),
        false_alarm_rate: float | None = None,
        importance_samples: int = 1,
        seed: int | None = None,
        classes: str | Sequence[str] = "",
        model: str = "",
        version: int = 0,
    ) -> Scores:
        """See `Client.score`."""
        arguments = requests.ScoreArguments(
            model=model,
            version=version,
            seed=seed,
            scores=scores,
            false_alarm_rate=false_alarm_rate,
            importance_samples=importance_samples,
        )

        names = ClassNames(classes)

        async def score(part: Portion) -> pb.ScoreResponse:
            response = await self._transport.score(arguments.request(part, names.of(part)))
            names.answered(part)
            return response

        responses = self._fitting.calls_async(score, _read_in_threads(portions(images)))
        found = arguments.received([response async for response in responses])
        names.check()
        return found

    async def iter_scores(
        self,
        images: Iterable[ImageLike] | ImageLike,
        *,
        scores: Iterable[str] = (),
        false_alarm_rate: float | None = None,
        importance_samples: int = 1,
        seed: int | None = None,
        class_name: str = "",
        model: str = "",
        version: int = 0,
    ) -> AsyncGenerator[ScoredImages, None]:
        """See `Client.iter_scores`. `images` is read in threads, by one thread at a time."""
        arguments = requests.ScoreArguments(
            model=model,
            version=version,
            seed=seed,
            scores=scores,
            false_alarm_rate=false_alarm_rate,
            importance_samples=importance_samples,
            class_name=class_name,
        )
        reading = Reading(images, arguments)

        def open_stream(parts: AsyncIterator[Portion]) -> AsyncGenerator[pb.ScoreResponse, None]:
            reading.open()
            outgoing = (arguments.request(reading.send(part)) async for part in parts)
            return self._transport.score_stream(outgoing)

        while not reading.ended:
            parts = _read_in_threads(reading.portions())
            stream = self._fitting.stream_async(open_stream, parts, reading.refuse)
            async with aclosing(stream) as responses:
                async for response in responses:
                    yield reading.scored(response)
            for unscored in reading.unscored():
                yield unscored

    async def explain(self, images: ImagesLike, *, model: str = "", version: int = 0) -> Explanations:
        """See `Client.explain`."""

        async def explain(part: Portion) -> pb.ExplainResponse:
            return await self._transport.explain(requests.explain_request(part, model, version))

        responses = self._fitting.calls_async(explain, _read_in_threads(portions(images)))
        return messages.explanations_of([response async for response in responses])

    async def score_set(
        self, images: Iterable[ImageLike] | ImageLike, *, model: str = "", version: int = 0
    ) -> SetScore:
        """See `Client.score_set`. `images` is read in a thread."""
        outgoing = SetRequests(images, model, version, self._fitting)
        while True:
            try:
                return messages.set_score_of(await self._transport.score_set(outgoing))
            except RequestError as refusal:
                outgoing.fit(refusal)

    async def sample(
        self,
        n: int = 1,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        class_name: str = "",
        model: str = "",
        version: int = 0,
    ) -> Samples:
        """See `Client.sample`."""
        request = requests.sample_request(n, temperature, seed, class_name, model, version)
        return messages.samples_of([response async for response in self._transport.sample(request)])

    async def iter_samples(
        self,
        n: int = 1,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        class_name: str = "",
        model: str = "",
        version: int = 0,
    ) -> AsyncGenerator[Samples, None]:
        """See `Client.iter_samples`."""
        request = requests.sample_request(n, temperature, seed, class_name, model, version)
        async with aclosing(self._transport.sample(request)) as responses:
            async for response in responses:
                yield messages.samples_of([response])

    async def encode(self, images: ImagesLike, *, model: str = "", version: int = 0) -> Encodings:
        """See `Client.encode`."""

        async def encode(part: Portion) -> pb.EncodeResponse:
            return await self._transport.encode(requests.encode_request(part, model, version))

        responses = self._fitting.calls_async(encode, _read_in_threads(portions(images)))
        return messages.encodings_of([response async for response in responses])

    async def decode(self, latents: npt.ArrayLike, *, model: str = "", version: int = 0) -> UInt8Array:
        """See `Client.decode`."""

        async def decode(part: Portion) -> pb.DecodeResponse:
            return await self._transport.decode(requests.decode_request(part, model, version))

        responses = self._fitting.calls_async(decode, _read_in_threads(latent_portions(latents)))
        return np.concatenate([messages.images_array(response.images) async for response in responses])

    async def interpolate(
        self, one: ImageLike, other: ImageLike, *, steps: int = 8, model: str = "", version: int = 0
    ) -> UInt8Array:
        """See `Client.interpolate`."""
        request = await asyncio.to_thread(requests.interpolate_request, one, other, steps, model, version)
        return messages.images_array((await self._transport.interpolate(request)).images)

    async def manipulate(
        self,
        image: ImageLike | LatentLike,
        attributes: str | Iterable[str],
        strengths: float | Iterable[float],
        *,
        model: str = "",
        version: int = 0,
    ) -> UInt8Array:
        """See `Client.manipulate`."""
        request = await asyncio.to_thread(
            requests.manipulate_request, image, attributes, strengths, model, version
        )
        return messages.images_array((await self._transport.manipulate(request)).images)

    async def models(self) -> list[ModelInfo]:
        """See `Client.models`."""
        return messages.model_infos(await self._transport.list_models(pb.ListModelsRequest()))

    async def manifest(self, *, model: str = "", version: int = 0) -> Manifest:
        """See `Client.manifest`."""
        return (await self._transport.get_model(requests.model_request(model, version))).manifest

    async def close(self) -> None:
        """Closes the connection. Outstanding calls are cancelled, and later calls raise ValueError."""
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            await carrier.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _read_in_threads(portions: Iterator[Portion]) -> AsyncGenerator[Portion, None]:
    """The portions, each made in a thread: reads files and encodes pictures beside the event loop."""
    while (part := await asyncio.to_thread(next, portions, None)) is not None:
        yield part
