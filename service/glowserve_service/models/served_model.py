"""A model that is served: an engine, a lane for each graph, a scorer, and the leases of the calls that use it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache, partial
from types import TracebackType

from prometheus_client import Counter, Gauge

from glowserve.drift import DriftDetector
from glowserve.images import UInt8Array
from glowserve.runtime.canary import check_canary
from glowserve.runtime.engine import Float32Array, Forward, Int64Array
from glowserve.runtime.errors import BundleError
from glowserve.runtime.explanation import Explainer
from glowserve.runtime.runner import Float64Array
from glowserve.scores import Scorer
from glowserve_service.config import ServiceConfig
from glowserve_service.models.daemon_threads import call_in_daemon_thread
from glowserve_service.models.engine_health import EngineHealth
from glowserve_service.models.lane import EXPLAIN, FORWARD, REVERSE, Lane
from glowserve_service.models.loading import LoadedModel, padded_sizes, public_sentence
from glowserve_service.models.opening import Opening
from glowserve_service.observability.metrics import Metrics
from glowserve_service.observability.traffic import Traffic
from glowserve_service.scheduling.joint_work import JointWork
from glowserve_service.scheduling.workers import Rows, Workers

# A canary takes milliseconds. An engine that has not answered by then hangs.
_CANARY_SECONDS = 30.0
# A large batch of a large model takes seconds.
_BATCH_SECONDS = 120.0

log = logging.getLogger(__name__)


class ServedModel:
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
        self.bundle, self.class_scorer = loaded.bundle, loaded.class_scorer
        self.manifest = loaded.bundle.manifest
        self.name, self.version = self.manifest.model, self.manifest.version
        self.fingerprint = loaded.fingerprint
        self.health = EngineHealth(f"{self.name} version {self.version}", on_change)
        scorer = self.scorer = loaded.scorer
        self.instances = workers.instances
        """Batches that run side by side."""
        engine = self._engine = loaded.engine
        self.device = engine.device
        """"cpu", "cuda" or "tensorrt"."""
        self.placements = engine.placements
        """Which providers run its graphs."""
        self.not_finite: Callable[[str], Counter] = cache(partial(metrics.not_finite.labels, self.name))
        """By method: how many images had a score, an encoding or a decoding that was not finite."""
        self.redrawn = metrics.redrawn_samples.labels(self.name)
        """How often a sample was drawn again."""
        self.inexact_encodings = metrics.inexact_encodings.labels(self.name)
        """How many encodings did not decode to their image."""
        oddness = loaded.scorer.oddness
        detector = None if oddness is None else DriftDetector(oddness)
        self.traffic = Traffic(self.name, self.version, detector)
        """What the images that it has scored look like."""
        self._metrics = metrics
        self._canary: Future[None] | None = None
        self._leases = 0
        self._unleased = asyncio.Event()

        def forward(images: UInt8Array, noise: Float32Array) -> Rows:
            result = engine.forward(images, noise)
            return (
                result.log_likelihood,
                result.latent,
                result.log_prior,
                result.log_det,
                *(() if result.log_posterior is None else (result.log_posterior,)),
                *scorer.likelihoods(result.log_likelihood),
            )

        def reverse(latent: Float32Array, *classes: Int64Array) -> Rows:
            result = engine.reverse(latent, *classes)
            return result.image, result.pixels

        explainer = Explainer(self.bundle, engine)
        self.opening = Opening(explainer, self.bundle, config.load_timeout_seconds)
        """Opens what `explain` runs, at the first call for it."""

        def explain(images: UInt8Array, noise: Float32Array) -> Rows:
            return (explainer.explain(images, noise),)

        lane = partial(
            Lane, workers=workers, config=config, metrics=metrics, buckets=padded_sizes(engine, config)
        )
        self.forward = lane(self.health.watched(forward), self.name, FORWARD)
        """From images [N, H, W, C] and noise to the arrays of `Forward` and of `Likelihoods`, in their order."""
        self.reverse = lane(self.health.watched(reverse), self.name, REVERSE)
        """From latents [N, D], with classes also their numbers [N], to the two arrays of `Reverse`, in its order."""
        # Not watched: if the third graph fails alone, scores and samples are as good as before.
        self.explain = lane(self.health.timed(explain), self.name, EXPLAIN)
        """From images [N, H, W, C] and noise to deviations [N, H, W], once it is open."""
        self.lanes = {FORWARD: self.forward, REVERSE: self.reverse, EXPLAIN: self.explain}
        """By direction."""
        self.p_values = JointWork(partial(_p_values, scorer), config.max_batch_size)
        """From images [N, H, W, C] and the arrays of `Forward` to `anomaly_p_value`, [N]."""
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
        return [
            (self._metrics.model_info, (*self._key, *kind), 1),
            *(
                (self._metrics.graph_nodes, (*self._key, placed.graph, placed.provider), placed.nodes)
                for placed in self.placements
            ),
        ]

    def lease(self) -> Lease:
        """Keeps it open for a call: `async with model.lease()`."""
        return Lease(self)

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
        while self._leases:
            self._unleased.clear()
            await self._unleased.wait()
        await self.close()

    async def close(self) -> None:
        """Refuses new work, waits for the accepted work, and frees what the engine holds of a GPU."""
        for lane in self.lanes.values():
            await lane.close()
        await asyncio.wrap_future(call_in_daemon_thread(self._engine.close))


def _p_values(scorer: Scorer, images: UInt8Array, *forward: Float32Array) -> Float64Array:
    return scorer.p_values(scorer.parts(Forward(*forward), images))


class Lease:
    """Keeps a model open inside `async with`."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    async def __aenter__(self) -> ServedModel:
        self._model._leases += 1
        return self._model

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._model._leases -= 1
        if not self._model._leases:
            self._model._unleased.set()
