"""Keeps the served models in step with the repository: finds, loads and swaps versions, and tries their canaries.

A version is loaded in a thread beside the one that is served, and replaces it in one step. Calls that have leased the
old one go on with it; it is closed after the last of them. A version that cannot be served is refused, and the version
that was served before stays. A refused version is tried again when its files change, or on request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, TypeVar

from glowserve.runtime.errors import BundleError, DeviceError, ModelNotFoundError
from glowserve.runtime.repository import Fingerprint, Listing, fingerprint, list_repository, without_models
from glowserve.runtime.sessions import Cancellation
from glowserve_service.config import ServiceConfig
from glowserve_service.errors import ForbiddenError, UnavailableError
from glowserve_service.models.loader_threads import LoaderThreads, LoadTimeoutError
from glowserve_service.models.loading import LoadedModel, load_model, public_sentence
from glowserve_service.models.registry import ServedModels
from glowserve_service.models.served_model import ServedModel
from glowserve_service.models.unserved import WHOLE_MODEL, Key, LoadFailure, Unserved, UnservedVersions
from glowserve_service.observability.metrics import Metrics
from glowserve_service.scheduling.workers import Workers
from glowserve_service.versions import VersionPolicy

# A service that waits for models runs in a container, where the error's words are not the whole answer.
_HOW = " (docker compose: MODELS names the folder, and --profile demo makes a model)"

log = logging.getLogger(__name__)

T = TypeVar("T")

# A batch that was accepted has had the time of the drain. What takes longer than this after it hangs.
_CLOSE_SECONDS = 1.0
# Versions of a model that are tried before the older ones are given up.
_MOST_REFUSED = 100
# Log lines about folders that are ignored, for each look at the repository.
_MOST_IGNORED_LINES = 20


class ModelManager:
    """Decides what is served: `start`, and later `close`.

    Args:
        config: the service's.
        models: what is served; nobody else changes it.
        metrics: the service's.
        on_health: called with whether the service is ready, and whether each model is, by its name.
    """

    def __init__(
        self,
        config: ServiceConfig,
        models: ServedModels,
        metrics: Metrics,
        on_health: Callable[[bool, Mapping[str, bool]], None],
    ) -> None:
        self._config = config
        self._models = models
        self._metrics = metrics
        self._on_health = on_health
        self._policy = VersionPolicy.parse(config.versions)
        self._threads = LoaderThreads(config.load_timeout_seconds, metrics)
        self._workers: Workers | None = None
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._retiring: set[ServedModel] = set()
        self._unserved = UnservedVersions()
        self._unloaded: set[str] = set()
        self._known: set[str] = set()
        self._listing_error = ""
        self._ignored: set[str] = set()

    async def start(self) -> None:
        """Loads the models, and from then on follows the repository.

        Raises:
            GlowserveError: nothing there can be served and `wait_for_models` is off, or the device cannot be used.
        """
        try:
            await self._load_all()
        except BundleError as error:
            if self._config.wait_for_models == "off":
                raise
            log.error("%s; waiting for a model%s", error, _HOW)
            self._publish_health()
        own_threads = self._config.instances == 1 or any(model.device != "cpu" for model in self._models)
        self._threads.lower_priority = not own_threads
        if self._config.poll_seconds:
            self._spawn(self._repeat(self._poll, self._config.poll_seconds))
        if self._config.canary_seconds:
            self._spawn(self._repeat(self._try_canaries, self._config.canary_seconds))

    async def _load_all(self) -> None:
        repository = self._config.repository
        listing = await self._read(list_repository, repository)
        self._note(listing)
        if not (listing.versions or listing.unreadable):
            raise BundleError(without_models(repository))
        try:
            for name, versions in listing.versions.items():
                await self._update(name, versions, final=True)
        except UnavailableError as error:  # too many hang; what is loaded already is served
            log.error("%s", error)
        errors = self._unserved.errors()
        if device_errors := [error for error in errors if isinstance(error, DeviceError)]:
            raise device_errors[0]
        if next(iter(self._models), None) is None:
            if errors:
                raise errors[0]
            raise BundleError(
                f"versions is {self._config.versions!r}, and repository {repository} has none of them"
            )

    async def close(self) -> None:
        """Ends the polls and canaries, and closes every model. What hangs is left behind, with a line in the log."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        models = {
            asyncio.create_task(model.close()): f"{model.name} version {model.version}"
            for model in (*self._models, *self._retiring)
        }
        hanging = (await asyncio.wait(models, timeout=_CLOSE_SECONDS))[1] if models else set()
        for task in hanging:
            log.error("%s hangs in a batch: it is left behind", models[task])
            task.cancel()
        if self._workers:
            self._workers.close(wait=not hanging)

    async def load(self, name: str) -> list[ServedModel]:
        """Looks now for versions of a model, tries refused ones again, and serves those of the policy.

        Returns:
            The versions of that model that are served.

        Raises:
            ForbiddenError: the service does not allow it.
            ModelNotFoundError: the repository has no such model.
            BundleError: a version was refused; the versions that were served before still are.
        """
        self._check_allowed()
        return await self._shielded(self._load(name))

    async def unload(self, name: str) -> None:
        """Serves a model no longer, until `load`; its accepted calls are answered.

        Raises:
            ForbiddenError: the service does not allow it.
            ModelNotFoundError: it is not served.
        """
        self._check_allowed()
        await self._shielded(self._unload(name))

    def unserved(self) -> Iterator[Unserved]:
        """The versions that were found and are not served, by name and version."""
        return iter(self._unserved)

    def _check_allowed(self) -> None:
        if self._config.admin != "on":
            raise ForbiddenError(
                "calls that load and unload models are off here; `glowserve serve --admin on` allows them"
            )

    async def _load(self, name: str) -> list[ServedModel]:
        async with self._changing:
            listing = await self._list()
            if name in listing.unreadable:
                raise BundleError(f"model {name}: {listing.unreadable[name]}")
            if name not in listing.versions:
                there = ", ".join(listing.versions) or "none"
                raise ModelNotFoundError(f"model {name[:128]!r} is not in the repository; there are {there}")
            self._unloaded.discard(name)
            failed = await self._update(name, listing.versions[name], final=True, again=True)
            if failed:
                raise BundleError(failed[0].reason)
            return list(self._models.versions(name).values())

    async def _unload(self, name: str) -> None:
        async with self._changing:
            if name in self._unloaded:
                return
            if not self._models.versions(name):
                raise ModelNotFoundError(f"model {name[:128]!r} is not served")
            self._unloaded.add(name)
            self._replace(name, {})

    async def _poll(self) -> None:
        async with self._changing:
            try:
                listing = await self._list()
                for name, versions in listing.versions.items():
                    if name not in self._unloaded:
                        await self._update(name, versions)
            except (BundleError, UnavailableError) as error:
                if str(error) != self._listing_error:
                    log.error("%s; the models that are served stay", error)
                self._listing_error = str(error)
            else:
                self._listing_error = ""

    async def _list(self) -> Listing:
        """What is in the repository now. Errors do not say where it lies."""
        repository = self._config.repository
        try:
            listing = await self._read(list_repository, repository)
        except BundleError as error:
            sentence = str(error).removeprefix(f"repository {repository}: ")
            raise BundleError(f"repository of the service: {sentence}") from error
        self._unserved.keep_models({*listing.versions, *listing.unreadable})
        self._note(listing)
        return listing

    def _note(self, listing: Listing) -> None:
        """Logs what is ignored, once, and refuses the models whose folders cannot be listed."""
        new = [name for name in listing.ignored if name not in self._ignored]
        self._ignored = set(listing.ignored)
        for name in new[:_MOST_IGNORED_LINES]:
            log.warning("%a in the repository is ignored: %s", name, listing.ignored[name])
        if more := new[_MOST_IGNORED_LINES:]:
            log.warning("%d more folders in the repository are ignored", len(more))
        for name, reason in listing.unreadable.items():
            self._known.add(name)
            before = self._unserved.get((name, WHOLE_MODEL))
            if before is None or before.reason != reason:
                error = BundleError(f"model {name}: {reason}")
                self._refuse((name, WHOLE_MODEL), LoadFailure(error, reason, (), final=True))

    async def _read(self, function: Callable[..., T], *args: Any) -> T:
        try:
            return await self._threads.run(function, *args)
        except LoadTimeoutError as error:
            raise UnavailableError(f"the repository does not answer: {error}") from error

    async def _update(
        self, name: str, versions: list[int], *, final: bool = False, again: bool = False
    ) -> list[LoadFailure]:
        """Serves the versions of a model that the policy admits and that can be loaded; returns the new failures.

        If none can be, the versions that are served stay.

        Args:
            name: the model's.
            versions: what was found.
            final: whether a version that fails is refused at once.
            again: whether refused ones are tried again.
        """
        self._known.add(name)
        self._unserved.keep(name, versions)
        served, chosen, failed = self._models.versions(name), dict[int, ServedModel](), list[LoadFailure]()
        most = self._policy.most(name)
        candidates = self._policy.candidates(name, versions)[: most + _MOST_REFUSED]
        # As long as nothing changes, these are all that are looked at: one thread does it.
        states = await self._states(name, candidates[: most + self._unserved.count(name)])
        for version in candidates:
            if len(chosen) == most:
                break
            state = states.get(version) or (await self._states(name, [version]))[version]
            model = await self._get((name, version), state, served.get(version), final=final, again=again)
            if isinstance(model, LoadFailure):
                failed.append(model)
            if kept := model if isinstance(model, ServedModel) else served.get(version):
                chosen[version] = kept
        if chosen and chosen != served:
            self._replace(name, chosen)
        return failed

    async def _states(self, name: str, versions: list[int]) -> dict[int, Fingerprint]:
        """The fingerprints of versions of a model."""
        folder = self._config.repository / name
        return await self._read(lambda: {version: fingerprint(folder / str(version)) for version in versions})

    async def _get(
        self, key: Key, state: Fingerprint, served: ServedModel | None, *, final: bool, again: bool
    ) -> ServedModel | LoadFailure | None:
        """The version as it is on the disk now; a failure if it failed just now, None if it failed before."""
        name, version = key
        path, before = self._config.repository / name / str(version), self._unserved.get(key)
        if served and served.fingerprint == state:
            self._unserved.forget(key)
            return served
        if before and before.fingerprint == state and not again:
            if not before.final:
                self._refuse(key, LoadFailure(before.error, before.reason, state, final=True))
            return None
        self._unserved.loading, cancel = key, Cancellation()
        try:
            loaded = await self._threads.run(
                load_model, path, self._config, cancel, on_late=LoadedModel.close
            )
        except (UnavailableError, asyncio.CancelledError):
            cancel()
            raise
        except Exception as error:
            cancel()  # a load that took too long still runs
            kind, sentence = type(error), str(error)
            if kind is LoadTimeoutError:
                kind, sentence, final = BundleError, f"bundle {path}: {sentence}", True
            elif kind not in (BundleError, DeviceError):
                log.exception("loading %s failed", path)
                kind, sentence = (
                    BundleError,
                    f"bundle {path}: an unforeseen error, which is in the server's log",
                )
            failure = LoadFailure(kind(sentence), public_sentence(sentence, path), state, final)
            self._refuse(key, failure)
            return failure
        finally:
            self._unserved.loading = None
        self._unserved.forget(key)
        return self._serve(loaded)

    def _refuse(self, key: Key, failure: LoadFailure) -> None:
        self._unserved.set(key, failure)
        name, version = key
        what = name if version == WHOLE_MODEL else f"{name} version {version}"
        if not failure.final:
            log.info("%s cannot be loaded yet: %s", what, failure.reason)
            return
        self._metrics.model_loads.labels(name, "refused").inc()
        log.error("%s is refused: %s", what, failure.reason)

    def _serve(self, loaded: LoadedModel) -> ServedModel:
        if self._workers is None:
            self._workers = Workers(self._config.instances_on(loaded.engine.device))
        return ServedModel(loaded, self._workers, self._config, self._metrics, self._publish_health)

    def _replace(self, name: str, versions: Mapping[int, ServedModel]) -> None:
        gone = self._models.replace(name, versions)
        served = ", ".join(map(str, sorted(versions))) or "none"
        log.info("%s: served now: version %s", name, served)
        self._publish_health()
        for model in gone:
            self._retiring.add(model)
            self._spawn(self._retire(model))

    async def _retire(self, model: ServedModel) -> None:
        await model.retire()
        self._retiring.discard(model)
        log.info("%s version %d is closed: its last call has ended", model.name, model.version)

    async def _try_canaries(self) -> None:
        for model in list(self._models):
            if model in self._models:  # it may have gone while the one before was tried
                await model.try_canary()

    def _publish_health(self) -> None:
        models = list(self._models)
        failing = {model.name for model in models if model.health.failure}
        ready = {name: bool(self._models.versions(name)) and name not in failing for name in self._known}
        self._on_health(bool(models) and not failing, ready)

    async def _repeat(self, function: Callable[[], Coroutine[Any, Any, None]], seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await function()
            except Exception:
                log.exception("%s failed; the next try is in %g s", function.__name__.strip("_"), seconds)

    async def _shielded(self, change: Coroutine[Any, Any, T]) -> T:
        """Returns the result of a change. If the caller is cancelled, the change still completes."""
        return await asyncio.shield(self._spawn(change))

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
