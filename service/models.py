"""The models that are served: for each an engine, a scorer, and a batcher each way."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from glowserve.images import UInt8Array
from service.batcher import Batcher, Rows, Workers
from service.canary import check_canary
from service.config import ServiceConfig
from service.counts import Counts
from service.engine import Engine, Float32Array, Reverse
from service.errors import BundleError, InvalidRequestError, ModelNotFoundError
from service.metrics import Metrics
from service.repository import Bundle, newest_bundles, open_bundle
from service.scoring import Scorer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A bundle in an engine, proved able to run."""

    bundle: Bundle
    engine: Engine


class ServedModel:
    """What answers calls for one model.

    Args:
        loaded: the model.
        workers: where its batches run.
        config: the service's.
        metrics: the service's.
    """

    def __init__(
        self, loaded: LoadedModel, workers: Workers, config: ServiceConfig, metrics: Metrics
    ) -> None:
        self.bundle = loaded.bundle
        self.manifest = loaded.bundle.manifest
        self.name = self.manifest.model
        self.scorer = Scorer(self.manifest)
        self.instances = workers.instances
        """Batches that run side by side."""
        self.forward_counts, self.reverse_counts = Counts(), Counts()
        """What each way has done."""
        engine = loaded.engine

        def forward(images: UInt8Array, noise: Float32Array) -> Rows:
            result = engine.forward(images, noise)
            return result.log_likelihood, result.latent

        def reverse(latent: Float32Array) -> Rows:
            result = engine.reverse(latent)
            return result.image, result.pixels

        lane = partial(
            Batcher,
            workers=workers,
            max_batch_size=config.max_batch_size,
            max_queue_size=config.max_queue_size,
            max_delay_seconds=config.max_queue_delay_ms / 1000,
        )
        self._forward = lane(
            forward,
            on_batch=metrics.batch_size.labels(self.name, "forward").observe,
            on_run=self.forward_counts.add,
        )
        self._reverse = lane(
            reverse,
            on_batch=metrics.batch_size.labels(self.name, "reverse").observe,
            on_run=self.reverse_counts.add,
        )
        for direction, batcher in (("forward", self._forward), ("reverse", self._reverse)):
            metrics.queue_length.labels(self.name, direction).set_function(
                partial(getattr, batcher, "queue_length")
            )
        metrics.model_info.labels(self.name, str(self.manifest.version), engine.device).set(1)

    async def forward(self, images: UInt8Array, noise: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Log-likelihoods [N] and latents [N, D] of images and noise, [N, H, W, C]."""
        with self.forward_counts.request():
            log_likelihood, latent = await self._forward.submit(images, noise)
        return log_likelihood, latent

    async def reverse(self, latent: Float32Array, *, admitted: bool = False) -> Reverse:
        """Images of latents, [N, D]; for `admitted` see `Batcher.submit`."""
        with self.reverse_counts.request():
            return Reverse(*await self._reverse.submit(latent, admitted=admitted))

    async def close(self) -> None:
        """Refuses new work, and waits for the accepted."""
        await self._forward.close()
        await self._reverse.close()


class Models:
    """Finds the model that a request means; empty until the models are loaded."""

    def __init__(self) -> None:
        self._models: dict[str, ServedModel] = {}

    def add(self, model: ServedModel) -> None:
        """Serves a model under its name from now on."""
        self._models[model.name] = model

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def find(self, name: str, version: int) -> ServedModel:
        """The model of a ModelSpec.

        Raises:
            InvalidRequestError: no name is given, and there are several models.
            ModelNotFoundError: there is no such model or version.
        """
        if not name:
            if len(self._models) > 1:
                raise InvalidRequestError(
                    f"model.name is empty and there are several models: {self._served()}"
                )
            name = next(iter(self._models))
        model = self._models.get(name)
        if model is None:
            raise ModelNotFoundError(f"model.name {name[:128]!r} is not served; served are {self._served()}")
        if version not in (0, model.manifest.version):
            raise ModelNotFoundError(
                f"model.version {version} of {name!r} is not served; served are {self._served()}"
            )
        return model

    def _served(self) -> str:
        return ", ".join(f"{model.name} version {model.manifest.version}" for model in self)


def load_models(config: ServiceConfig) -> list[LoadedModel]:
    """Loads the newest version of every model in the repository, runs each once, and tries its canary.

    Raises:
        BundleError: there is none, or one is damaged.
        DeviceError: the device cannot be used.
    """
    loaded = []
    for path in newest_bundles(config.repository).values():
        began = time.monotonic()
        bundle = open_bundle(path)
        # Side by side, single-threaded runs beat one run with many threads.
        engine = Engine(bundle, device=config.device, threads=1 if config.instances != 1 else 0)
        for size in {1, config.max_batch_size}:
            try:
                _warm_up(engine, bundle, size)
            except Exception as error:  # ONNX Runtime has no public base class of its errors
                raise BundleError(f"bundle {path}: its first run failed: {error}") from error
        check_canary(engine, bundle)
        loaded.append(LoadedModel(bundle, engine))
        log.info("loaded %s on %s in %.2f s", path, engine.device, time.monotonic() - began)
    return loaded


def _warm_up(engine: Engine, bundle: Bundle, size: int) -> None:
    images = np.zeros((size, *bundle.shape), np.uint8)
    engine.reverse(engine.forward(images, np.full(images.shape, 0.5, np.float32)).latent)
