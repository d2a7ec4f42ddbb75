"""The client, for event loops: `glowserve.client` with `await`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from types import TracebackType

import grpc
import numpy as np
import numpy.typing as npt

from glowserve import messages
from glowserve.client import requests as calls
from glowserve.client.errors import request_errors
from glowserve.client.inputs import (
    ImageLike,
    ImagesLike,
    Portion,
    portions,
    read_portions,
)
from glowserve.client.transports import streams
from glowserve.credentials import FilePath, call_metadata, channel_credentials
from glowserve.images import UInt8Array
from glowserve.results import (
    Encodings,
    ModelInfo,
    Samples,
    Scores,
)
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import glow_service_pb2_grpc
from glowserve.v1.manifest_pb2 import Manifest


class AsyncClient:
    """Asks a running service from an event loop; see `Client`.

    Args:
        target: "HOST:PORT".
        timeout: seconds that one call may take, retries included.
        tls: as in `Client`, like the four that follow.
        ca: the service's authority.
        cert: the client's certificate.
        key: its key.
        token: says who is calling.

    Raises:
        ValueError: a file cannot be used, or the token would cross a network in the clear.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = calls.TIMEOUT,
        tls: bool = False,
        ca: FilePath | None = None,
        cert: FilePath | None = None,
        key: FilePath | None = None,
        token: str | None = None,
    ) -> None:
        self._timeout = timeout
        encryption = channel_credentials(tls=tls, ca=ca, cert=cert, key=key)
        self._metadata = call_metadata(token, target, encrypted=encryption is not None)
        if encryption is None:
            self._channel = grpc.aio.insecure_channel(target, calls.CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(target, encryption, calls.CHANNEL_OPTIONS)
        self._stub = glow_service_pb2_grpc.GlowServiceStub(self._channel)

    async def score(
        self, images: ImagesLike, *, seed: int | None = None, model: str = "", version: int = 0
    ) -> Scores:
        """See `Client.score`."""
        with request_errors():
            return messages.scores_of(
                [
                    await self._stub.Score(
                        calls.score_request(part, model, version, seed),
                        timeout=self._timeout,
                        metadata=self._metadata,
                    )
                    async for part in _beside(portions(images))
                ]
            )

    async def iter_scores(
        self,
        images: Iterable[ImageLike] | ImageLike,
        *,
        seed: int | None = None,
        model: str = "",
        version: int = 0,
    ) -> AsyncIterator[Scores]:
        """See `Client.iter_scores`; `images` is read in threads, one after the other."""
        requests = (
            calls.score_request(part, model, version, seed) async for part in _beside(read_portions(images))
        )

        def open_stream(requests: AsyncIterator[pb.ScoreRequest]) -> AsyncIterator[pb.ScoreResponse]:
            stream: AsyncIterator[pb.ScoreResponse] = self._stub.ScoreStream(
                requests, metadata=self._metadata
            )
            return stream

        with streams.stream_errors():
            async for response in streams.answers_async(open_stream, requests, self._timeout):
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
        with request_errors():
            stream = self._sample(n, temperature, seed, model, version)
            return messages.samples_of([response async for response in stream])

    async def iter_samples(
        self,
        n: int = 1,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        model: str = "",
        version: int = 0,
    ) -> AsyncIterator[Samples]:
        """See `Client.iter_samples`."""
        with request_errors():
            async for response in self._sample(n, temperature, seed, model, version):
                yield messages.samples_of([response])

    def _sample(
        self, n: int, temperature: float, seed: int | None, model: str, version: int
    ) -> AsyncIterator[pb.SampleResponse]:
        request = calls.sample_request(n, temperature, seed, model, version)
        stream: AsyncIterator[pb.SampleResponse] = self._stub.Sample(
            request, timeout=calls.sample_timeout(self._timeout, n), metadata=self._metadata
        )
        return stream

    async def encode(self, images: ImagesLike, *, model: str = "", version: int = 0) -> Encodings:
        """See `Client.encode`."""
        with request_errors():
            return messages.encodings_of(
                [
                    await self._stub.Encode(
                        calls.encode_request(part, model, version),
                        timeout=self._timeout,
                        metadata=self._metadata,
                    )
                    async for part in _beside(portions(images))
                ]
            )

    async def decode(self, latents: npt.ArrayLike, *, model: str = "", version: int = 0) -> UInt8Array:
        """See `Client.decode`."""
        with request_errors():
            responses = [
                await self._stub.Decode(request, timeout=self._timeout, metadata=self._metadata)
                for request in calls.decode_requests(latents, model, version)
            ]
        return np.concatenate([messages.images_array(response.images) for response in responses])

    async def interpolate(
        self, one: ImageLike, other: ImageLike, *, steps: int = 8, model: str = "", version: int = 0
    ) -> UInt8Array:
        """See `Client.interpolate`."""
        request = await asyncio.to_thread(calls.interpolate_request, one, other, steps, model, version)
        with request_errors():
            response = await self._stub.Interpolate(request, timeout=self._timeout, metadata=self._metadata)
        return messages.images_array(response.images)

    async def models(self) -> list[ModelInfo]:
        """See `Client.models`."""
        with request_errors():
            response = await self._stub.ListModels(
                pb.ListModelsRequest(), timeout=self._timeout, metadata=self._metadata
            )
        return messages.model_infos(response)

    async def manifest(self, *, model: str = "", version: int = 0) -> Manifest:
        """See `Client.manifest`."""
        with request_errors():
            response = await self._stub.GetModel(
                calls.model_request(model, version), timeout=self._timeout, metadata=self._metadata
            )
        manifest: Manifest = response.manifest
        return manifest

    async def close(self) -> None:
        """Ends the connection."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _beside(portions: Iterator[Portion]) -> AsyncIterator[Portion]:
    """The same; files are read and pictures encoded beside the event loop."""
    while (part := await asyncio.to_thread(next, portions, None)) is not None:
        yield part
