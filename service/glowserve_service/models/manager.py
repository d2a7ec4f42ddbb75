"""Keeps what is served in step with the repository: finds versions, loads them, swaps them, and tries their canaries.

A version is loaded in a thread beside the one that serves, and takes its place in one step. Calls that have found the
old one go on with it; it is closed after the last of them. A version that cannot be served is refused, and what was
served before goes on. A refused one is tried again when its files change, or on request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from glowserve.runtime.errors import (
    BundleError,
    DeviceError,
    GlowserveError,
    ModelNotFoundError,
)
from glowserve.runtime.repository import MANIFEST, find_versions, fingerprint
from glowserve_service.config import ServiceConfig
from glowserve_service.errors import ForbiddenError
from glowserve_service.front.health import Health
from glowserve_service.models.models import (
    LoadedModel,
    Models,
    ServedModel,
    load_model,
    public_sentence,
)
from glowserve_service.observability.metrics import Metrics
from glowserve_service.scheduling.batcher import Workers
from glowserve_service.versions import VersionPolicy

# A third of the others' share. A thread that hardly ran would hold the interpreter's lock for long when it has it.
_NICENESS = 5

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Unserved:
    """A version that was found and is not served."""

    name: str
    version: int
    reason: str
    """Why, in a sentence; empty while it is loaded for the first time."""
    refused: bool
    """Whether that is final until its files change; else it is being loaded, or perhaps still being copied."""


@dataclass(frozen=True)
class _Failure:
    """Of a version that could not be loaded."""

    error: GlowserveError
    """Without the frames in which it was raised: they hold the engine."""
    reason: str
    fingerprint: tuple[object, ...]
    final: bool
    """Whether its files were the same at two looks, so that nobody is still writing them."""


class ModelManager:
    """Decides what is served: `start`, and later `close`.

    Args:
        config: the service's.
        models: what is served; changed by nobody else.
        metrics: the service's.
        health: told how the models are.
    """

    def __init__(self, config: ServiceConfig, models: Models, metrics: Metrics, health: Health) -> None:
        self._config = config
        self._models = models
        self._metrics = metrics
        self._health = health
        self._policy = VersionPolicy.parse(config.versions)
        self._thread: ThreadPoolExecutor | None = None
        self._workers: Workers | None = None
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._retiring: set[ServedModel] = set()
        self._failures: dict[tuple[str, int], _Failure] = {}
        self._loading: tuple[str, int] | None = None
        self._unloaded: set[str] = set()
        self._known: set[str] = set()
        self._trouble = ""

    async def start(self) -> None:
        """Loads what is to be served, and from then on follows the repository.

        Raises:
            GlowserveError: nothing there can be served, or the device cannot be used.
        """
        repository = self._config.repository
        found = await self._in_thread(find_versions, repository)
        if not found:
            raise BundleError(
                f"repository {repository} holds no bundle MODEL/VERSION/{MANIFEST}; "
                "`glowserve export CHECKPOINT REPOSITORY/MODEL` writes one"
            )
        for name, versions in found.items():
            await self._update(name, versions, final=True)
        errors = [failure.error for failure in self._failures.values()]
        if device_errors := [error for error in errors if isinstance(error, DeviceError)]:
            raise device_errors[0]
        if next(iter(self._models), None) is None:
            if errors:
                raise errors[0]
            raise BundleError(
                f"versions is {self._config.versions!r}, and repository {repository} has none of them"
            )
        own_threads = self._config.instances == 1 or any(model.device != "cpu" for model in self._models)
        initializer = None if own_threads else _give_way
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader", initializer=initializer)
        if self._config.poll_seconds:
            self._spawn(self._repeat(self._look, self._config.poll_seconds))
        if self._config.canary_seconds:
            self._spawn(self._repeat(self._try_canaries, self._config.canary_seconds))

    async def close(self) -> None:
        """Ends what goes on by itself, and closes every model."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for model in (*self._models, *self._retiring):
            await model.close()
        if self._thread:
            self._thread.shutdown(cancel_futures=True)
        if self._workers:
            self._workers.close()

    async def load(self, name: str) -> list[ServedModel]:
        """Looks now for versions of a model, tries refused ones again, and serves those of the policy.

        Returns:
            What is served under that name.

        Raises:
            ForbiddenError: the service does not allow it.
            ModelNotFoundError: the repository has no such model.
            BundleError: a version was refused; what was served before still is.
        """
        self._check_allowed()
        return await self._to_its_end(self._load(name))

    async def unload(self, name: str) -> None:
        """Serves a model no longer, until `load`; its accepted calls are answered.

        Raises:
            ForbiddenError: the service does not allow it.
            ModelNotFoundError: it is not served.
        """
        self._check_allowed()
        await self._to_its_end(self._unload(name))

    def unserved(self) -> Iterator[Unserved]:
        """What was found and is not served, by name and version."""
        keys = {*self._failures, *([self._loading] if self._loading else [])}
        for name, version in sorted(keys):
            failure = self._failures.get((name, version))
            loading = (name, version) == self._loading
            yield Unserved(
                name,
                version,
                failure.reason if failure else "",
                refused=failure is not None and failure.final and not loading,
            )

    def _check_allowed(self) -> None:
        if self._config.admin != "on":
            raise ForbiddenError(
                "calls that load and unload models are off here; `glowserve serve --admin on` allows them"
            )

    async def _load(self, name: str) -> list[ServedModel]:
        async with self._changing:
            found = await self._scan()
            if name not in found:
                there = ", ".join(found) or "none"
                raise ModelNotFoundError(f"model {name[:128]!r} is not in the repository; there are {there}")
            self._unloaded.discard(name)
            failed = await self._update(name, found[name], final=True, again=True)
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

    async def _look(self) -> None:
        async with self._changing:
            try:
                found = await self._scan()
            except BundleError as error:
                if str(error) != self._trouble:
                    log.error("%s; what is served stays", error)
                self._trouble = str(error)
                return
            self._trouble = ""
            for key in [key for key in self._failures if key[0] not in found]:
                del self._failures[key]
            for name, versions in found.items():
                if name not in self._unloaded:
                    await self._update(name, versions)

    async def _scan(self) -> dict[str, list[int]]:
        try:
            return await self._in_thread(find_versions, self._config.repository)
        except BundleError as error:
            raise BundleError(str(error).replace(str(self._config.repository), "of the service")) from error

    async def _update(
        self, name: str, versions: list[int], *, final: bool = False, again: bool = False
    ) -> list[_Failure]:
        """Serves those of a model's versions that the policy wants and that can be; returns what failed just now.

        If none can be, what is served stays.

        Args:
            name: the model's.
            versions: what was found.
            final: whether a version that fails is refused at once.
            again: whether refused ones are tried again.
        """
        self._known.add(name)
        for key in [key for key in self._failures if key[0] == name and key[1] not in versions]:
            del self._failures[key]
        served, chosen, failed = self._models.versions(name), dict[int, ServedModel](), list[_Failure]()
        for version in self._policy.candidates(name, versions):
            if len(chosen) == self._policy.most(name):
                break
            model = await self._get(name, version, served.get(version), final=final, again=again)
            if isinstance(model, _Failure):
                failed.append(model)
            if kept := model if isinstance(model, ServedModel) else served.get(version):
                chosen[version] = kept
        if chosen and chosen != served:
            self._replace(name, chosen)
        return failed

    async def _get(
        self, name: str, version: int, served: ServedModel | None, *, final: bool, again: bool
    ) -> ServedModel | _Failure | None:
        """A version as it is on the disk now; a failure if it failed just now, None if it did before."""
        key, path = (name, version), self._config.repository / name / str(version)
        state = await self._in_thread(fingerprint, path)
        before = self._failures.get(key)
        if served and served.fingerprint == state:
            self._failures.pop(key, None)
            return served
        if before and before.fingerprint == state and not again:
            if not before.final:
                self._refuse(key, _Failure(before.error, before.reason, state, final=True))
            return None
        self._loading = key
        try:
            loaded = await self._in_thread(load_model, path, self._config)
        except Exception as error:
            kind, sentence = type(error), str(error)
            if kind not in (BundleError, DeviceError):
                log.exception("loading %s failed", path)
                kind, sentence = (
                    BundleError,
                    f"bundle {path}: an unforeseen error, which is in the server's log",
                )
            failure = _Failure(kind(sentence), public_sentence(sentence, path), state, final)
            self._refuse(key, failure)
            return failure
        finally:
            self._loading = None
        self._failures.pop(key, None)
        return self._serve(loaded)

    def _refuse(self, key: tuple[str, int], failure: _Failure) -> None:
        self._failures[key] = failure
        if not failure.final:
            log.info("%s version %d cannot be loaded yet: %s", *key, failure.reason)
            return
        self._metrics.model_loads.labels(key[0], "refused").inc()
        log.error("%s version %d is refused: %s", *key, failure.reason)

    def _serve(self, loaded: LoadedModel) -> ServedModel:
        if self._workers is None:
            self._workers = Workers(self._config.instances_on(loaded.engine.device))
        return ServedModel(loaded, self._workers, self._config, self._metrics, self._tell)

    def _replace(self, name: str, versions: Mapping[int, ServedModel]) -> None:
        gone = self._models.replace(name, versions)
        served = ", ".join(map(str, sorted(versions))) or "none"
        log.info("%s: served now: version %s", name, served)
        self._tell()
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

    def _tell(self) -> None:
        """Says how the models are, to health and in the metric."""
        models = list(self._models)
        for model in models:
            self._metrics.model_ready.labels(model.name, str(model.version)).set(not model.condition.failure)
        failing = {model.name for model in models if model.condition.failure}
        ready = {name: bool(self._models.versions(name)) and name not in failing for name in self._known}
        self._health.tell(bool(models) and not failing, ready)

    async def _repeat(self, function: Callable[[], Coroutine[Any, Any, None]], seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await function()
            except Exception:
                log.exception("%s failed; the next try is in %g s", function.__name__.strip("_"), seconds)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """In one thread that gives way to those that answer calls; while the service starts, in any."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def _to_its_end(self, change: Coroutine[Any, Any, T]) -> T:
        """Awaits a change, which goes on where the caller gives up."""
        return await asyncio.shield(self._spawn(change))

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _give_way() -> None:
    """Lets this thread run less than others, on Linux, where a thread has a priority of its own.

    Threads that it starts inherit that. It is not for engines that run in threads of their own, as they do with one
    instance or on a GPU.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
