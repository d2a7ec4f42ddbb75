"""The client, for threads. `glowserve.client.async_client` has its twin for event loops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


class Client:
    """Asks a running service. May be shared between threads.

    Each method takes `model` and `version`; the name may be left out where the service has one model, and version 0
    is the one that is served. Large inputs are sent in several calls. A call that finds the service unavailable is
    tried again, up to four times with growing pauses.

    Args:
        target: "HOST:PORT".
        timeout: seconds that one call may take, retries included.
        tls: encrypt, and trust the authorities that gRPC trusts; `ca` and `cert` imply it.
        ca: trust this authority (a PEM file) instead.
        cert: the client's own certificate (a PEM file), for a service that asks for one.
        key: its key (a PEM file).
        token: says who is calling, where the service wants to know. Without encryption it goes to this machine alone.

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
            self._channel = grpc.insecure_channel(target, calls.CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, encryption, calls.CHANNEL_OPTIONS)
        self._stub = glow_service_pb2_grpc.GlowServiceStub(self._channel)

    def score(
        self, images: ImagesLike, *, seed: int | None = None, model: str = "", version: int = 0
    ) -> Scores:
        """How likely images are.

        Args:
            images: one or several: paths, files' bytes, Pillow images (of any size), or uint8 arrays
                [H, W], [H, W, C], [N, H, W, C] (of the model's size).
            seed: of the dequantization noise; the service's default, 0, if left out.
            model: the model's name.
            version: the model's version.

        Raises:
            RequestError: the call was refused or failed.
            InvalidImageError: a file is no picture, or an array is no image.
        """
        with request_errors():
            return messages.scores_of(
                [
                    self._stub.Score(
                        calls.score_request(part, model, version, seed),
                        timeout=self._timeout,
                        metadata=self._metadata,
                    )
                    for part in portions(images)
                ]
            )

    def iter_scores(
        self,
        images: Iterable[ImageLike] | ImageLike,
        *,
        seed: int | None = None,
        model: str = "",
        version: int = 0,
    ) -> Iterator[Scores]:
        """Like `score`, but yields the scores of some images at a time, in order: for images without end.

        Images are read as scores are taken, at most 320 ahead, and sent over one stream; `timeout` is for each answer.
        To leave the iterator cancels what is under way. Where the service stops meanwhile, another is asked for the
        rest. An error is about images that follow
        those whose scores have been yielded.

        Args:
            images: any iterable of paths, files' bytes, Pillow images or uint8 arrays [H, W] or [H, W, C]; or one of
                these, or an array [N, H, W, C].
            seed: as in `score`, like the rest.
            model: the model's name.
            version: the model's version.

        Raises:
            RequestError: the call was refused or failed.
            InvalidImageError: a file is no picture, or an array is no image.
        """
        requests = (calls.score_request(part, model, version, seed) for part in read_portions(images))

        def open_stream(requests: Iterator[pb.ScoreRequest]) -> Iterator[pb.ScoreResponse]:
            stream: Iterator[pb.ScoreResponse] = self._stub.ScoreStream(requests, metadata=self._metadata)
            return stream

        with streams.stream_errors():
            for response in streams.answers(open_stream, requests, self._timeout):
                yield messages.scores_of([response])

    def sample(
        self,
        n: int = 1,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        model: str = "",
        version: int = 0,
    ) -> Samples:
        """Draws images.

        Args:
            n: how many.
            temperature: the standard deviation of the latents; below 1: more typical, less varied.
            seed: the service draws one if left out; it is in the result.
            model: the model's name.
            version: the model's version.

        Raises:
            RequestError: the call was refused or failed.
        """
        with request_errors():
            return messages.samples_of(list(self._sample(n, temperature, seed, model, version)))

    def iter_samples(
        self,
        n: int = 1,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        model: str = "",
        version: int = 0,
    ) -> Iterator[Samples]:
        """Like `sample`, but yields some images at a time, as they come: for many images, or for progress."""
        with request_errors():
            for response in self._sample(n, temperature, seed, model, version):
                yield messages.samples_of([response])

    def _sample(
        self, n: int, temperature: float, seed: int | None, model: str, version: int
    ) -> Iterator[pb.SampleResponse]:
        request = calls.sample_request(n, temperature, seed, model, version)
        stream: Iterator[pb.SampleResponse] = self._stub.Sample(
            request, timeout=calls.sample_timeout(self._timeout, n), metadata=self._metadata
        )
        return stream

    def encode(self, images: ImagesLike, *, model: str = "", version: int = 0) -> Encodings:
        """Maps images to latents; for the arguments see `score`.

        Raises:
            RequestError: the call was refused or failed.
            InvalidImageError: a file is no picture, or an array is no image.
        """
        with request_errors():
            return messages.encodings_of(
                [
                    self._stub.Encode(
                        calls.encode_request(part, model, version),
                        timeout=self._timeout,
                        metadata=self._metadata,
                    )
                    for part in portions(images)
                ]
            )

    def decode(self, latents: npt.ArrayLike, *, model: str = "", version: int = 0) -> UInt8Array:
        """Maps latents [N, D] to images, uint8 [N, H, W, C].

        Raises:
            RequestError: the call was refused or failed.
            ValueError: that is not the shape of latents.
        """
        with request_errors():
            responses = [
                self._stub.Decode(request, timeout=self._timeout, metadata=self._metadata)
                for request in calls.decode_requests(latents, model, version)
            ]
        return np.concatenate([messages.images_array(response.images) for response in responses])

    def interpolate(
        self, one: ImageLike, other: ImageLike, *, steps: int = 8, model: str = "", version: int = 0
    ) -> UInt8Array:
        """Images on the way from one to another through the latents, uint8 [steps, H, W, C], both ends included.

        Args:
            one: the first: a path, a file's bytes, a Pillow image, or a uint8 array [H, W] or [H, W, C].
            other: the last; likewise.
            steps: how many images.
            model: the model's name.
            version: the model's version.

        Raises:
            RequestError: the call was refused or failed.
            InvalidImageError: a file is no picture, or an array is no image.
        """
        with request_errors():
            response = self._stub.Interpolate(
                calls.interpolate_request(one, other, steps, model, version),
                timeout=self._timeout,
                metadata=self._metadata,
            )
        return messages.images_array(response.images)

    def models(self) -> list[ModelInfo]:
        """What is served, and then the versions that are not, which are still being loaded or were refused.

        Raises:
            RequestError: the call failed.
        """
        with request_errors():
            response = self._stub.ListModels(
                pb.ListModelsRequest(), timeout=self._timeout, metadata=self._metadata
            )
        return messages.model_infos(response)

    def manifest(self, *, model: str = "", version: int = 0) -> Manifest:
        """All that a model's bundle says of itself.

        Raises:
            RequestError: the call was refused or failed.
        """
        with request_errors():
            response = self._stub.GetModel(
                calls.model_request(model, version), timeout=self._timeout, metadata=self._metadata
            )
        manifest: Manifest = response.manifest
        return manifest

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After Ctrl-C a call may have been left half-way, and gRPC's close would wait for its end for ever.
        if kind is None or issubclass(kind, Exception):
            self.close()
