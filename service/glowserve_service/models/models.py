"""The models that are served: for each an engine, a scorer, and a batcher each way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import Counter, Gauge

from glowserve.images import UInt8Array
from glowserve.runtime.canary import check_canary
from glowserve.runtime.config import bucket_sizes
from glowserve.runtime.engine import Engine, Float32Array, Reverse
from glowserve.runtime.errors import BundleError, InvalidRequestError, ModelNotFoundError
from glowserve.runtime.repository import Bundle, fingerprint, open_bundle
from glowserve.runtime.scoring import Scorer
from glowserve_service.config import ServiceConfig
from glowserve_service.front.call import current
from glowserve_service.observability.batch_metrics import Observer
from glowserve_service.observability.metrics import Metrics
from glowserve_service.observability.statistics import Counts
from glowserve_service.scheduling.batcher import (
    Batcher,
    Rows,
    Workers,
)

# A canary takes milliseconds. An engine that has not answered by then hangs.
_CANARY_SECONDS = 30.0
_DIRECTIONS = ("forward", "reverse")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A bundle in an engine, proved able to run."""

    bundle: Bundle
    engine: Engine
    fingerprint: tuple[object, ...]
    """Of the files, before they were read."""


class Condition:
    """Whether an engine works, as far as is known. For the event loop's thread alone, but for `watching`.

    Args:
        name: the model's and its version, for the log.
        on_change: told when `failure` has changed.
    """

    def __init__(self, name: str, on_change: Callable[[], None]) -> None:
        self.failure = ""
        """A sentence; empty while the engine works."""
        self._name = name
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()

    def watching(self, function: Callable[..., Rows]) -> Callable[..., Rows]:
        """The function, which runs the engine in a thread; whatever it raises is the engine's failure."""

        def watched(*rows: Any) -> Rows:
            try:
                return function(*rows)
            except Exception:
                self._loop.call_soon_threadsafe(
                    self.set, "its engine failed in a batch; the error is in the server's log"
                )
                raise

        return watched

    def set(self, failure: str) -> None:
        """Says how it is from now on."""
        if failure == self.failure:
            return
        self.failure = failure
        if failure:
            log.error("%s is not ready: %s", self._name, failure)
        else:
            log.info("%s is ready again: its canary passes", self._name)
        self._on_change()


class ServedModel:
    """What answers calls for one model.

    Args:
        loaded: the model.
        workers: where its batches run.
        config: the service's.
        metrics: the service's.
        on_change: told when its engine fails, and when it works again.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        workers: Workers,
        config: ServiceConfig,
        metrics: Metrics,
        on_change: Callable[[], None],
    ) -> None:
        self.bundle = loaded.bundle
        self.manifest = loaded.bundle.manifest
        self.name, self.version = self.manifest.model, self.manifest.version
        self.fingerprint = loaded.fingerprint
        self.condition = Condition(f"{self.name} version {self.version}", on_change)
        self.scorer = Scorer(self.manifest)
        self.instances = workers.instances
        """Batches that run side by side."""
        self.forward_counts, self.reverse_counts = Counts(), Counts()
        """What each way has done."""
        engine = self._engine = loaded.engine
        self.not_finite: Callable[[str], Counter] = cache(partial(metrics.not_finite.labels, self.name))
        """By method: how many images had a score, an encoding or a decoding that was not finite."""
        self.inexact_encodings = metrics.inexact_encodings.labels(self.name)
        """How many encodings did not decode to their image."""
        self._metrics = metrics
        self._holders = 0

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
            buckets=_buckets(engine, config),
        )
        self._ahead = Observer(metrics, self.name, "forward", self.forward_counts)
        self._back = Observer(metrics, self.name, "reverse", self.reverse_counts)
        self._forward, self._reverse = (
            lane(
                self.condition.watching(function),
                on_batch=observer.sent,
                on_drop=observer.dropped,
                on_run=observer.ran,
            )
            for function, observer in ((forward, self._ahead), (reverse, self._back))
        )
        self.device = engine.device
        """"cpu", "cuda" or "tensorrt"."""
        self.placements = engine.placements
        """Which providers run its graphs."""
        metrics.model_loads.labels(self.name, "loaded").inc()
        metrics.canary_checks.labels(self.name, "ok").inc()
        # From the start at 0: Prometheus takes no increase from a series that begins with 1.
        metrics.model_loads.labels(self.name, "refused")
        metrics.canary_checks.labels(self.name, "failed")

    def show(self) -> None:
        """Puts it among the metrics of what is served."""
        for gauge, labels, value in self._gauges():
            gauge.labels(*labels).set(value)

    def hide(self) -> None:
        """Takes it from them."""
        for gauge, labels, _ in self._gauges():
            gauge.remove(*labels)

    def _gauges(self) -> list[tuple[Gauge, tuple[str, ...], float]]:
        metrics, key = self._metrics, (self.name, str(self.version))
        kind = self.device, self.placements[0].provider, self.manifest.flow.precision or "fp32"
        return [
            (metrics.model_ready, key, float(not self.condition.failure)),
            (metrics.model_info, (*key, *kind), 1),
            *(
                (metrics.graph_nodes, (*key, placed.graph, placed.provider), placed.nodes)
                for placed in self.placements
            ),
        ]

    def queue_length(self, direction: str) -> int:
        """Images that wait. May be asked from any thread."""
        return (self._forward if direction == "forward" else self._reverse).queue_length

    def hold(self) -> Callable[[], None]:
        """Keeps it open for a caller, until what is returned is called."""
        self._holders += 1

        def release() -> None:
            self._holders -= 1

        return release

    async def try_canary(self) -> None:
        """Runs the canary beside what else runs, and sets the condition by it."""
        release = self.hold()
        try:
            # Not wait_for: if the canary ends as this task is cancelled, that forgets the cancellation.
            async with asyncio.timeout(_CANARY_SECONDS):
                await asyncio.to_thread(check_canary, self._engine, self.bundle)
        except TimeoutError:
            failure = f"its canary has taken {_CANARY_SECONDS:g} s: the engine hangs"
        except BundleError as error:
            failure = public_sentence(str(error), self.bundle.path)
        except Exception:  # ONNX Runtime has no public base class of its errors
            log.exception("the canary of %s version %d failed", self.name, self.version)
            failure = "its engine failed on the canary; the error is in the server's log"
        else:
            failure = ""
        finally:
            release()
        self._metrics.canary_checks.labels(self.name, "failed" if failure else "ok").inc()
        self.condition.set(failure)

    async def forward(
        self, images: UInt8Array, noise: Float32Array, *, admitted: bool = False, long: bool = False
    ) -> tuple[Float32Array, Float32Array]:
        """Log-likelihoods [N] and latents [N, D] of images and noise, [N, H, W, C]; see `Batcher.submit`."""
        deadline = current().deadline
        with self._ahead.request(len(images)):
            log_likelihood, latent = await self._forward.submit(
                images, noise, admitted=admitted, long=long, deadline=deadline
            )
        return log_likelihood, latent

    async def reverse(self, latent: Float32Array, *, admitted: bool = False, long: bool = False) -> Reverse:
        """Images of latents, [N, D]; for `admitted` and `long` see `Batcher.submit`."""
        deadline = current().deadline
        with self._back.request(len(latent)):
            return Reverse(
                *await self._reverse.submit(latent, admitted=admitted, long=long, deadline=deadline)
            )

    async def retire(self) -> None:
        """Waits for those who hold it, and closes it."""
        while self._holders:
            await asyncio.sleep(0.05)
        await self.close()

    async def close(self) -> None:
        """Refuses new work, and waits for the accepted."""
        await self._forward.close()
        await self._reverse.close()
        await asyncio.to_thread(self._engine.close)


class Models:
    """What is served. Finds the model that a request means.

    Args:
        metrics: the service's.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._models: dict[str, dict[int, ServedModel]] = {}

    def __iter__(self) -> Iterator[ServedModel]:
        """By name, then version."""
        return (model for versions in self._models.values() for model in versions.values())

    def versions(self, name: str) -> Mapping[int, ServedModel]:
        """What is served under a name, by version, ascending."""
        return self._models.get(name, {})

    def replace(self, name: str, versions: Mapping[int, ServedModel]) -> list[ServedModel]:
        """Serves these versions of a model, and no others, from now on; returns those that were and are not."""
        before = self.versions(name)
        kept = {id(model) for model in versions.values()}
        gone = [model for model in before.values() if id(model) not in kept]
        for model in gone:
            model.hide()
        models = {**self._models, name: dict(sorted(versions.items()))}
        self._models = {name: models[name] for name in sorted(models) if models[name]}
        for model in versions.values():
            model.show()
        for direction in _DIRECTIONS:
            if versions:
                self._metrics.queue_length.labels(name, direction).set_function(
                    partial(self._queue_length, name, direction)
                )
            elif before:
                self._metrics.queue_length.remove(name, direction)
        return gone

    def find(self, name: str, version: int) -> ServedModel:
        """The model of a ModelSpec.

        Raises:
            InvalidRequestError: no name is given, and there are several models.
            ModelNotFoundError: there is no such model or version.
        """
        if not name:
            if len(self._models) > 1:
                raise InvalidRequestError(
                    f"model.name is empty and there are several models: {self._served()}", "model.name"
                )
            name = next(iter(self._models), "")
        versions = self.versions(name)
        if not versions:
            raise ModelNotFoundError(f"model.name {name[:128]!r} is not served; served are {self._served()}")
        model = versions.get(version or max(versions))
        if model is None:
            raise ModelNotFoundError(
                f"model.version {version} of {name!r} is not served; served are {self._served()}"
            )
        current().models.add((name, model.version))
        return model

    def _served(self) -> str:
        return ", ".join(f"{model.name} version {model.version}" for model in self) or "none"

    def _queue_length(self, name: str, direction: str) -> int:
        return sum(model.queue_length(direction) for model in self.versions(name).values())


def load_model(path: Path, config: ServiceConfig) -> LoadedModel:
    """Loads the bundle in a VERSION folder, runs it at every size that it will meet, and tries its canary.

    Raises:
        BundleError: it is damaged, or does not compute what was proved.
        DeviceError: the device cannot be used.
    """
    began = time.monotonic()
    state = fingerprint(path)
    bundle = open_bundle(path)
    engine = Engine(bundle, config.runtime)
    try:
        for size in sorted({1, config.max_batch_size, *_buckets(engine, config)}):
            _warm_up(engine, bundle, size)
        check_canary(engine, bundle)
    except BaseException:
        engine.close()
        raise
    placed = ", ".join(f"{p.nodes} nodes of {p.graph} by {p.provider}" for p in engine.placements)
    log.info("loaded %s on %s in %.2f s: %s", path, engine.device, time.monotonic() - began, placed)
    return LoadedModel(bundle, engine, state)


def public_sentence(sentence: str, path: Path) -> str:
    """What callers may read of an error of the bundle in a VERSION folder: one line, without the folder's place."""
    return " ".join(sentence.replace(str(path), f"{path.parent.name}/{path.name}").split())


def _buckets(engine: Engine, config: ServiceConfig) -> tuple[int, ...]:
    """What batches are padded to. A GPU pays for every new size once, a CPU for every row."""
    return () if engine.device == "cpu" else bucket_sizes(config.max_batch_size)


def _warm_up(engine: Engine, bundle: Bundle, size: int) -> None:
    images = np.zeros((size, *bundle.shape), np.uint8)
    try:
        engine.reverse(engine.forward(images, np.full(images.shape, 0.5, np.float32)).latent)
    except Exception as error:  # ONNX Runtime has no public base class of its errors
        raise BundleError(f"bundle {bundle.path}: its first run failed: {error}") from error
