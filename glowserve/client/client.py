"""The client, for threads. `AsyncClient` has the same calls for event loops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType

import numpy as np
import numpy.typing as npt

from glowserve import messages
from glowserve.client import requests
from glowserve.client.inputs import ImageLike, ImagesLike, portions, read_portions
from glowserve.client.transports.base import Transport
from glowserve.client.transports.channel import TIMEOUT, ChannelSettings
from glowserve.client.transports.grpc_transport import GrpcTransport
from glowserve.credentials import FilePath
from glowserve.images import UInt8Array
from glowserve.results import Encodings, ModelInfo, Samples
from glowserve.scores import Scores
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.manifest_pb2 import Manifest


class Client:
    """Calls a running service, or a bundle in this process (`glowserve.open`). May be shared between threads.

    Each method takes `model` and `version`; the name may be left out where there is one model, and version 0 is the one
    that is served. Large inputs are sent in several calls. A call that finds the service unavailable is tried again, up
    to four times with growing pauses.

    Args:
        target: "HOST:PORT" of the service.
        timeout: seconds that one call may take, retries included.
        tls: encrypt, and trust the authorities that gRPC trusts; `ca` and `cert` imply it.
        ca: trust this authority (a PEM file) instead.
        cert: the client's own certificate (a PEM file), for a service that asks for one.
        key: its key (a PEM file).
        token: authenticates the caller, where the service asks for tokens; without encryption, on loopback only.
        transport: carries the requests in place of gRPC; then there is no target, and no other setting.

    Raises:
        ValueError: a file cannot be used, or the token would cross a network unencrypted.
    """

    def __init__(
        self,
        target: str = "",
        *,
        timeout: float = TIMEOUT,
        tls: bool = False,
        ca: FilePath | None = None,
        cert: FilePath | None = None,
        key: FilePath | None = None,
        token: str | None = None,
        transport: Transport | None = None,
    ) -> None:
        requests.check_target(target, transport)
        self._transport: Transport = transport or GrpcTransport(
            ChannelSettings(target=target, timeout=timeout, tls=tls, ca=ca, cert=cert, key=key, token=token)
        )

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
        score = self._transport.score
        return messages.scores_of(
            [score(requests.score_request(part, model, version, seed)) for part in portions(images)]
        )

    def iter_scores(
        self,
        images: Iterable[ImageLike] | ImageLike,
        *,
        seed: int | None = None,
        model: str = "",
        version: int = 0,
    ) -> Iterator[Scores]:
        """Like `score`, but yields the scores of some images at a time, in order: for unbounded iterables.

        Images are read as scores are taken, at most 320 ahead, and sent over one stream; `timeout` is for each answer.
        Closing the iterator cancels outstanding requests. If the service stops meanwhile, the rest goes to another one
        at the same target. An error is about images that follow those whose scores have been yielded.

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
        asked = (requests.score_request(part, model, version, seed) for part in read_portions(images))
        for response in self._transport.score_stream(asked):
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
        request = requests.sample_request(n, temperature, seed, model, version)
        return messages.samples_of(list(self._transport.sample(request)))

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
        request = requests.sample_request(n, temperature, seed, model, version)
        for response in self._transport.sample(request):
            yield messages.samples_of([response])

    def encode(self, images: ImagesLike, *, model: str = "", version: int = 0) -> Encodings:
        """Maps images to latents; for the arguments see `score`.

        Raises:
            RequestError: the call was refused or failed.
            InvalidImageError: a file is no picture, or an array is no image.
        """
        encode = self._transport.encode
        return messages.encodings_of(
            [encode(requests.encode_request(part, model, version)) for part in portions(images)]
        )

    def decode(self, latents: npt.ArrayLike, *, model: str = "", version: int = 0) -> UInt8Array:
        """Maps latents [N, D] to images, uint8 [N, H, W, C].

        Raises:
            RequestError: the call was refused or failed.
            ValueError: that is not the shape of latents.
        """
        decode = self._transport.decode
        responses = [decode(request) for request in requests.decode_requests(latents, model, version)]
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
        request = requests.interpolate_request(one, other, steps, model, version)
        return messages.images_array(self._transport.interpolate(request).images)

    def models(self) -> list[ModelInfo]:
        """The versions that are served, and then those that are not: still being loaded, or refused.

        Raises:
            RequestError: the call failed.
        """
        return messages.model_infos(self._transport.list_models(pb.ListModelsRequest()))

    def manifest(self, *, model: str = "", version: int = 0) -> Manifest:
        """All that a model's bundle says of itself.

        Raises:
            RequestError: the call was refused or failed.
        """
        return self._transport.get_model(requests.model_request(model, version)).manifest

    def close(self) -> None:
        """Ends the connection."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            self.close()
        else:  # Ctrl-C has interrupted a call
            self._transport.abandon()
