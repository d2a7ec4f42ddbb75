"""A model that this process serves: an engine, and a lane for each graph."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from prometheus_client import Gauge

from glowserve.drift import DriftDetector
from glowserve.images import UInt8Array
from glowserve.runtime.canary import check_canary
from glowserve.runtime.engine import Float32Array, Int64Array
from glowserve.runtime.errors import BundleError
from glowserve.runtime.explanation import Explainer
from glowserve.runtime.sessions import has_cuda
from glowserve_service.config import ServiceConfig
from glowserve_service.models.daemon_threads import call_in_daemon_thread
from glowserve_service.models.engine_health import EngineHealth
from glowserve_service.models.lane import EXPLAIN, FORWARD, REVERSE, Lane
from glowserve_service.models.loading import LoadedModel, padded_sizes, public_sentence
from glowserve_service.models.model import Model
from glowserve_service.models.opening import Opening
from glowserve_service.observability.metrics import Metrics
from glowserve_service.observability.traffic import Traffic
from glowserve_service.scheduling.engine_threads import Rows
from glowserve_service.scheduling.workers import Workers

# A canary takes milliseconds. An engine that has not answered by then hangs.
_CANARY_SECONDS = 30.0
# A large batch of a large model takes seconds.
_BATCH_SECONDS = 120.0

log = logging.getLogger(__name__)


class ServedModel(Model):
    """Answers the calls for one version of a model.

    Args:
        loaded: the version.
        workers: where its batches run.
        config: the service's.
        metrics: the service's.
        on_change: called when its engine fails, and when it works again.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        workers: Workers,
        config: ServiceConfig,
        metrics: Metrics,
        on_change: Callable[[], None],
    ) -> None:
        super().__init__(
            loaded.bundle,
            loaded.scorer,
            loaded.class_scorer,
            loaded.attributes,
            loaded.engine.placements,
            instances=workers.instances,
            max_batch_size=config.max_batch_size,
            metrics=metrics,
        )
        self.fingerprint = loaded.fingerprint
        self.health = EngineHealth(f"{self.name} version {self.version}", on_change)
        scorer, engine = loaded.scorer, loaded.engine
        self._engine = engine
        self.device = engine.device
        """"cpu", "cuda" or "tensorrt"."""
        oddness = loaded.scorer.oddness
        detector = None if oddness is None else DriftDetector(oddness)
        self.traffic: Traffic = Traffic(self.name, self.version, detector)
        self._metrics, self._device_setting = metrics, config.device
        self._canary: Future[None] | None = None

        def forward(images: UInt8Array, noise: Float32Array, *, wide: bool = False) -> Rows:
            result = engine.forward(images, noise, wide=wide)
            return (
                result.log_likelihood,
                result.latent,
                result.log_prior,
                result.log_det,
                *(() if result.log_posterior is None else (result.log_posterior,)),
                *scorer.likelihoods(result.log_likelihood),
            )

        def reverse(latent: Float32Array, *classes: Int64Array, wide: bool = False) -> Rows:
            result = engine.reverse(latent, *classes, wide=wide)
            return result.image, result.pixels

        explainer = Explainer(self.bundle, engine)
        self.opening = Opening(explainer, self.bundle, config.load_timeout_seconds)

        def explain(images: UInt8Array, noise: Float32Array, *, wide: bool = False) -> Rows:
            return (explainer.explain(images, noise, wide=wide),)

        lane = partial(
            Lane,
            share=workers.share(),
            widens=engine.widens,
            config=config,
            metrics=metrics,
            buckets=padded_sizes(engine, config),
        )
        self.forward = lane(self.health.watched(forward), self.name, FORWARD)
        self.reverse = lane(self.health.watched(reverse), self.name, REVERSE)
        # Not watched: if the third graph fails alone, scores and samples are as good as before.
        self.explain = lane(self.health.timed(explain), self.name, EXPLAIN)
        self.lanes = {FORWARD: self.forward, REVERSE: self.reverse, EXPLAIN: self.explain}
        """By direction."""
        metrics.model_loads.labels(self.name, "loaded").inc()
        metrics.canary_checks.labels(self.name, "ok").inc()
        # From the start at 0: Prometheus takes no increase from a series that begins with 1.
        metrics.model_loads.labels(self.name, "refused")
        metrics.canary_checks.labels(self.name, "failed")

    def show(self) -> None:
        """Adds it to the metrics of the models that are served."""
        for gauge, labels, value in self._gauges():
            gauge.labels(*labels).set(value)
        self._metrics.traffic.show(self.traffic)
        # Not self: the gauge is part of a reference cycle, which would keep a replaced model's engine in memory.
        health = self.health
        self._metrics.model_ready.labels(*self._key).set_function(lambda: float(not health.failure))

    def hide(self) -> None:
        """Removes it from those metrics."""
        for gauge, labels, _ in self._gauges():
            gauge.remove(*labels)
        self._metrics.model_ready.remove(*self._key)
        self._metrics.traffic.hide(self.traffic)

    @property
    def _key(self) -> tuple[str, str]:
        return self.name, str(self.version)

    def _gauges(self) -> list[tuple[Gauge, tuple[str, ...], float]]:
        kind = self.device, self.placements[0].provider, self.manifest.flow.precision or "fp32"
        fell_back = self._device_setting == "auto" and self.device == "cpu" and has_cuda()
        return [
            (self._metrics.model_info, (*self._key, *kind), 1),
            (self._metrics.cpu_fallback, self._key, float(fell_back)),
            *(
                (self._metrics.graph_nodes, (*self._key, placed.graph, placed.provider), placed.nodes)
                for placed in self.placements
            ),
        ]

    async def try_canary(self) -> None:
        """Runs the canary beside the batches, and sets the engine's health by its result."""
        try:
            if self._canary is None or self._canary.done():  # else the one before still hangs
                self._canary = call_in_daemon_thread(check_canary, self._engine, self.bundle)
            # Not wait_for: if the canary ends as this task is cancelled, that forgets the cancellation.
            async with self.lease(), asyncio.timeout(_CANARY_SECONDS):
                await asyncio.wrap_future(self._canary)
        except TimeoutError:
            failure = f"its canary has taken {_CANARY_SECONDS:g} s: the engine hangs"
        except BundleError as error:
            failure = public_sentence(str(error), self.bundle.path)
        except Exception:  # ONNX Runtime has no public base class of its errors
            log.exception("the canary of %s version %d failed", self.name, self.version)
            failure = "its engine failed on the canary; the error is in the server's log"
        else:
            failure = ""
            if self.health.batch_seconds > _BATCH_SECONDS:
                failure = f"a batch has taken more than {_BATCH_SECONDS:g} s: the engine hangs"
        self._metrics.canary_checks.labels(self.name, "failed" if failure else "ok").inc()
        self.health.set(failure)

    async def retire(self) -> None:
        """Waits until no call has a lease, and closes it."""
        await self.unleased()
        await self.close()

    async def close(self) -> None:
        """Refuses new work, waits for the accepted work, and frees what the engine holds of a GPU."""
        for lane in self.lanes.values():
            await lane.close()
        await asyncio.wrap_future(call_in_daemon_thread(self._engine.close))
