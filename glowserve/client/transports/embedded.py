"""A bundle in one's own process: the calls of `glowserve.Client`, without a service.

Requests take the same way as in the service, from message to array, so that both refuse, prepare and answer alike.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from glowserve_service.config import ServiceConfig
from glowserve_service.front.status import reason_of, status_of

from glowserve import messages
from glowserve.client import requests as calls
from glowserve.client.errors import RequestError
from glowserve.client.inputs import (
    ImageLike,
    ImagesLike,
    portions,
    read_portions,
)
from glowserve.images import UInt8Array
from glowserve.results import (
    Encodings,
    ModelInfo,
    Samples,
    Scores,
)
from glowserve.runtime import inputs, scoring
from glowserve.runtime.canary import check_canary
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine, Float32Array
from glowserve.runtime.errors import GlowserveError, ModelNotFoundError
from glowserve.runtime.interpolation import interpolate
from glowserve.runtime.randomness import dequantization_noise, latents
from glowserve.runtime.repository import newest_bundle
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.manifest_pb2 import Manifest

_BATCH = ServiceConfig.max_batch_size


class EmbeddedModel:
    """Answers for one bundle; see `glowserve.open`. May be shared between threads.

    Args:
        model: REPOSITORY/MODEL or REPOSITORY/MODEL/VERSION.
        device: "auto", "cpu", "cuda" or "tensorrt".

    Raises:
        GlowserveError: there is no bundle, it is damaged, or the device cannot be used.
    """

    def __init__(self, model: str | PathLike[str], *, device: str = "auto") -> None:
        self._bundle = newest_bundle(Path(model))
        self._engine = Engine(self._bundle, RuntimeConfig(device=device))
        check_canary(self._engine, self._bundle)
        self._scorer = scoring.Scorer(self._bundle.manifest)

    def score(
        self, images: ImagesLike, *, seed: int | None = None, model: str = "", version: int = 0
    ) -> Scores:
        """See `glowserve.Client.score`."""
        with self._asked_for(model, version):
            calls.check_seed(seed)
            return self._score(self._prepared(images), seed)

    def iter_scores(
        self,
        images: Iterable[ImageLike] | ImageLike,
        *,
        seed: int | None = None,
        model: str = "",
        version: int = 0,
    ) -> Iterator[Scores]:
        """See `glowserve.Client.iter_scores`."""
        with self._asked_for(model, version):
            calls.check_seed(seed)
            for portion in read_portions(images):
                yield self._score([self._read(messages.images_message(portion))], seed)

    def sample(
        self,
        n: int = 1,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        model: str = "",
        version: int = 0,
    ) -> Samples:
        """See `glowserve.Client.sample`."""
        drawn = list(self.iter_samples(n, temperature=temperature, seed=seed, model=model, version=version))
        return replace(drawn[0], images=np.concatenate([samples.images for samples in drawn]))

    def iter_samples(
        self,
        n: int = 1,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        model: str = "",
        version: int = 0,
    ) -> Iterator[Samples]:
        """See `glowserve.Client.iter_samples`."""
        with self._asked_for(model, version):
            request = calls.sample_request(n, temperature, seed, model, version)
            inputs.check_samples(request.n, ServiceConfig.max_samples_per_call)
            inputs.check_temperature(request.temperature)
            seed = secrets.randbits(64) if seed is None else seed
            manifest = self._bundle.manifest
            for first in range(0, n, _BATCH):
                size = manifest.image.latent_size
                latent = latents(seed, first, min(_BATCH, n - first), size, request.temperature)
                decoded = self._engine.reverse(latent)
                scoring.require_finite_images(decoded, first=first, what="temperature: sample")
                yield Samples(decoded.image, manifest.model, manifest.version, seed)

    def encode(self, images: ImagesLike, *, model: str = "", version: int = 0) -> Encodings:
        """See `glowserve.Client.encode`."""
        with self._asked_for(model, version):
            encoded, mismatched = [], []
            for part in _batches(self._prepared(images)):
                latent = self._encode(part)
                decoded = self._engine.reverse(latent)
                encoded.append(latent)
                mismatched.append(
                    scoring.mismatched_values(part, decoded, self._bundle.manifest.image.n_bits)
                )
            manifest = self._bundle.manifest
            return Encodings(
                np.concatenate(encoded), np.concatenate(mismatched), manifest.model, manifest.version
            )

    def decode(self, latents: npt.ArrayLike, *, model: str = "", version: int = 0) -> UInt8Array:
        """See `glowserve.Client.decode`."""
        with self._asked_for(model, version):
            images = []
            for request in calls.decode_requests(latents, model, version):
                limit = request.latents.shape[0]
                decoded = self._engine.reverse(
                    inputs.read_latents(request.latents, self._bundle, max_images=limit)
                )
                scoring.require_finite_images(decoded)
                images.append(decoded.image)
            return np.concatenate(images)

    def interpolate(
        self, one: ImageLike, other: ImageLike, *, steps: int = 8, model: str = "", version: int = 0
    ) -> UInt8Array:
        """See `glowserve.Client.interpolate`."""
        with self._asked_for(model, version):
            request = calls.interpolate_request(one, other, steps, model, version)
            inputs.check_steps(steps, ServiceConfig.max_images_per_call)
            first, last = self._encode(self._read(request.images))
            path = interpolate(first, last, steps)
            drawn = []
            for i in range(0, steps, _BATCH):
                decoded = self._engine.reverse(path[i : i + _BATCH])
                scoring.require_finite_images(decoded, first=i, what="images: step")
                drawn.append(decoded.image)
            return np.concatenate(drawn)

    def models(self) -> list[ModelInfo]:
        """This model."""
        manifest = self._bundle.manifest
        version = pb.ModelVersion(name=manifest.model, version=manifest.version)
        summary = pb.ModelSummary(model=version, image=manifest.image, state=pb.MODEL_STATE_SERVING)
        return [messages.model_info(summary)]

    def manifest(self, *, model: str = "", version: int = 0) -> Manifest:
        """All that the bundle says of itself."""
        with self._asked_for(model, version):
            return self._bundle.manifest

    def close(self) -> None:
        """Nothing to do; here so that a client and a model can stand for each other."""

    def __enter__(self) -> EmbeddedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _score(self, images: Iterable[UInt8Array], seed: int | None) -> Scores:
        seed = scoring.DEFAULT_SEED if seed is None else seed
        nats = [
            self._engine.forward(part, dequantization_noise(seed, part)).log_likelihood
            for part in _batches(images)
        ]
        return self._scorer.score(np.concatenate(nats), seed)

    def _encode(self, images: UInt8Array) -> Float32Array:
        noise = np.full(images.shape, scoring.ENCODING_NOISE, np.float32)
        latent = self._engine.forward(images, noise).latent
        scoring.require_finite_latents(latent)
        return latent

    def _prepared(self, images: ImagesLike) -> Iterator[UInt8Array]:
        return (self._read(messages.images_message(portion)) for portion in portions(images))

    def _read(self, images: pb.Images) -> UInt8Array:
        return inputs.read_images(
            images,
            self._bundle,
            max_images=ServiceConfig.max_images_per_call,
            max_pixels=ServiceConfig.max_pixels_per_call,
        )

    @contextmanager
    def _asked_for(self, model: str, version: int) -> Iterator[None]:
        """Checks that this model is meant, and raises what a client would raise."""
        manifest = self._bundle.manifest
        try:
            if model not in ("", manifest.model) or version not in (0, manifest.version):
                raise ModelNotFoundError(
                    f"model {model!r} version {version} is not open; "
                    f"open is {manifest.model} version {manifest.version}"
                )
            yield
        except GlowserveError as error:
            raise RequestError(status_of(error), str(error), reason_of(error)) from None


def _batches(images: Iterable[UInt8Array]) -> Iterator[UInt8Array]:
    """The images of arrays [N, H, W, C], some at a time."""
    for array in images:
        for i in range(0, len(array), _BATCH):
            yield array[i : i + _BATCH]
