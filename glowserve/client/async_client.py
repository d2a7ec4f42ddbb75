"""The client for event loops: `Client` with `await`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from types import TracebackType

import numpy as np
import numpy.typing as npt

from glowserve import messages
from glowserve.client import requests
from glowserve.client.inputs import ImageLike, ImagesLike, Portion, portions, read_portions
from glowserve.client.transports.base import AsyncTransport
from glowserve.client.transports.channel import TIMEOUT_SECONDS, ChannelSettings, check_transport
from glowserve.client.transports.grpc_asyncio import AsyncGrpcTransport
from glowserve.credentials import FilePath
from glowserve.images import UInt8Array
from glowserve.results import Encodings, ModelInfo, Samples
from glowserve.scores import Scores
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.manifest_pb2 import Manifest


class AsyncClient:
    """Calls a running service from an event loop. `Client` explains the calls and the arguments.

    Files are read, and pictures encoded, in threads beside the event loop.

    Args:
        target: HOST:PORT of the service.
        timeout: how many seconds a call may take, retries included.
        tls: encrypt, and trust the authorities that gRPC trusts.
        ca: trust this authority instead: a PEM file.
        cert: the client's certificate: a PEM file.
        key: the key of the client's certificate: a PEM file.
        token: authenticates the caller.
        transport: carries the requests instead of gRPC. With a transport there is no target, and no setting of one.

    Raises:
        ValueError: there is neither a target nor a transport, a file cannot be used, or the token would cross a network
            unencrypted.
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
        self._transport: AsyncTransport = transport or AsyncGrpcTransport(settings)

    async def score(
        self, images: ImagesLike, *, seed: int | None = None, model: str = "", version: int = 0
    ) -> Scores:
        """See `Client.score`."""
        score = self._transport.score
        return messages.scores_of(
            [
                await score(requests.score_request(part, model, version, seed))
                async for part in _read_in_threads(portions(images))
            ]
        )

    async def iter_scores(
        self,
        images: Iterable[ImageLike] | ImageLike,
        *,
        seed: int | None = None,
        model: str = "",
        version: int = 0,
    ) -> AsyncGenerator[Scores, None]:
        """See `Client.iter_scores`. `images` is read in threads, by one thread at a time."""
        outgoing = (
            requests.score_request(part, model, version, seed)
            async for part in _read_in_threads(read_portions(images))
        )
        async with aclosing(self._transport.score_stream(outgoing)) as responses:
            async for response in responses:
                yield messages.scores_of([response])

    async def sample(
        self,
        n: int = 1,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        model: str = "",
        version: int = 0,
    ) -> Samples:
        """See `Client.sample`."""
        request = requests.sample_request(n, temperature, seed, model, version)
        return messages.samples_of([response async for response in self._transport.sample(request)])

    async def iter_samples(
        self,
        n: int = 1,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        model: str = "",
        version: int = 0,
    ) -> AsyncGenerator[Samples, None]:
        """See `Client.iter_samples`."""
        request = requests.sample_request(n, temperature, seed, model, version)
        async with aclosing(self._transport.sample(request)) as responses:
            async for response in responses:
                yield messages.samples_of([response])

    async def encode(self, images: ImagesLike, *, model: str = "", version: int = 0) -> Encodings:
        """See `Client.encode`."""
        encode = self._transport.encode
        return messages.encodings_of(
            [
                await encode(requests.encode_request(part, model, version))
                async for part in _read_in_threads(portions(images))
            ]
        )

    async def decode(self, latents: npt.ArrayLike, *, model: str = "", version: int = 0) -> UInt8Array:
        """See `Client.decode`."""
        decode = self._transport.decode
        responses = [await decode(request) for request in requests.decode_requests(latents, model, version)]
        return np.concatenate([messages.images_array(response.images) for response in responses])

    async def interpolate(
        self, one: ImageLike, other: ImageLike, *, steps: int = 8, model: str = "", version: int = 0
    ) -> UInt8Array:
        """See `Client.interpolate`."""
        request = await asyncio.to_thread(requests.interpolate_request, one, other, steps, model, version)
        return messages.images_array((await self._transport.interpolate(request)).images)

    async def models(self) -> list[ModelInfo]:
        """See `Client.models`."""
        return messages.model_infos(await self._transport.list_models(pb.ListModelsRequest()))

    async def manifest(self, *, model: str = "", version: int = 0) -> Manifest:
        """See `Client.manifest`."""
        return (await self._transport.get_model(requests.model_request(model, version))).manifest

    async def close(self) -> None:
        """Closes the connection. Outstanding calls are cancelled."""
        await self._transport.close()

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
