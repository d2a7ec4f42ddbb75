"""The front-ends of a service, in the engine process: starts, replaces and stops them. It stands in for a `Front`."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from glowserve.runtime.errors import GlowserveError
from glowserve_service.config import ServiceConfig
from glowserve_service.errors import PortError
from glowserve_service.front.closers import Closers
from glowserve_service.front.control import Control
from glowserve_service.front.front import cannot_listen, last_calls_seconds, try_to_bind
from glowserve_service.frontends import arena, main
from glowserve_service.frontends.arena import SharedMemory
from glowserve_service.frontends.descriptions import packed_config
from glowserve_service.frontends.frontend_link import FrontendLink
from glowserve_service.frontends.protocol import Kind
from glowserve_service.models.registry import ServedModels
from glowserve_service.observability import logs, traces
from glowserve_service.observability.deltas import DROPPED_LINES
from glowserve_service.observability.metrics import Metrics

_MOST_SECONDS_TO_START = 120.0
# Beyond `drain_seconds`: what a front waits for before and after it drains, its decoders, its log.
_MOST_SECONDS_TO_STOP = 5.0
_MOST_SECONDS_TO_DIE = 1.0
# A call that loads a model is answered when every front-end knows it. One that is stopped is not waited for.
_CHANGE_SECONDS = 5.0
# A front-end that ends again and again is started less and less often.
_LEAST_PAUSE_SECONDS, _MOST_PAUSE_SECONDS = 0.1, 10.0
# One that has lived so long ends for another reason than its predecessor.
_LONG_LIFE_SECONDS = 30.0

log = logging.getLogger(__name__)


class Frontends:
    """N processes that accept calls: `bind`, `start`, `ready`, `accept`, and later `stop`, as a `Front` has them.

    Args:
        config: the service's settings.
        metrics: the service's, to which the front-ends add.
        closers: to which the reserved port is added.
    """

    def __init__(self, config: ServiceConfig, metrics: Metrics, closers: Closers) -> None:
        self._config, self._metrics, self._closers = config, metrics, closers
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._links: dict[int, FrontendLink] = {}
        self._lives: list[asyncio.Task[None]] = []
        self._processes: set[asyncio.subprocess.Process] = set()
        self._health: tuple[bool, Mapping[str, bool]] = (False, {})
        self._accepts = False
        self._stopped = asyncio.Event()
        self._all_start: asyncio.Future[None] = self._loop.create_future()
        metrics.ready.set_function(lambda: float(self._accepts))
        metrics.requests_in_flight.set_function(lambda: sum(self._gauges("requests_in_flight")))
        metrics.received_bytes.set_function(lambda: sum(self._gauges("received_bytes")))
        metrics.descriptors_short.set_function(lambda: max(self._gauges("descriptors_short"), default=0.0))
        # Lines that front-ends have dropped that have ended since.
        self._dropped_lines = 0.0
        metrics.count_dropped_lines(
            lambda: logs.dropped_lines() + self._dropped_lines + sum(self._gauges(DROPPED_LINES))
        )
        metrics.before_scrapes(self._refresh)

    def bind(self) -> int:
        """Reserves the port, which the front-ends listen on; returns its number.

        Raises:
            PortError: it cannot be listened on.
            TracingError: the front-ends could not send traces.
        """
        traces.check_environment()  # before models are loaded
        host, port = self._config.host, self._config.port
        try:
            try_to_bind(host, port)  # without SO_REUSEPORT: another service may have the port
            family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._reserved = socket.socket(family, kind)
            self._closers.add(self._reserved.close)
            self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._reserved.bind(address)
        except OSError as error:
            raise PortError(cannot_listen("port", port, host, error)) from error
        self._port = int(self._reserved.getsockname()[1])
        return self._port

    async def start(self, models: ServedModels, control: Control) -> None:
        """Starts the processes, which answer UNAVAILABLE.

        Args:
            models: what is served.
            control: answers the calls about that.
        """
        self._models, self._control = models, control
        models.on_change = self._serve
        self._lives = [asyncio.create_task(self._live(place)) for place in range(self._config.frontends)]

    async def ready(self) -> None:
        """Returns when every front-end listens.

        Raises:
            GlowserveError: one does not start.
        """
        await asyncio.wait({self._all_start}, timeout=_MOST_SECONDS_TO_START)
        if not self._all_start.done():
            raise GlowserveError(f"a front-end has not started in {_MOST_SECONDS_TO_START:g} s")
        self._all_start.result()

    async def accept(self) -> None:
        """Has them accept calls, all at the same moment: a client that was answered once must not be refused then."""
        await self._applied(_MOST_SECONDS_TO_START)
        self._accepts = True
        for link in self._links.values():
            link.tell(Kind.ACCEPT)
        await self._applied(_MOST_SECONDS_TO_START)

    def set_health(self, ready: bool, models: Mapping[str, bool]) -> None:
        """See `Health.set`."""
        self._health = ready, models
        for link in self._links.values():
            link.tell(Kind.HEALTH, self._health)

    async def stop(self) -> None:
        """Has them say NOT_SERVING, refuse new calls and finish accepted ones, and waits for their ends.

        All of them refuse calls before one closes its connections: its clients connect again, to the others.
        """
        end = time.monotonic() + self._config.drain_seconds + _MOST_SECONDS_TO_STOP
        self._accepts = False
        for link in self._links.values():
            link.tell(Kind.REFUSE)
        await self._applied(last_calls_seconds(self._config.drain_seconds))
        for link in self._links.values():
            link.tell(Kind.STOP)
        await self._end(end - time.monotonic())

    async def abandon(self) -> None:
        """Ends front-ends that have not accepted calls."""
        await self._end(0.0)

    async def close(self) -> None:
        """Leaves the metrics as they are."""
        self._metrics.before_scrapes(lambda: None)

    async def sync(self) -> None:
        """Takes over what the front-ends have counted."""
        await asyncio.gather(*(link.sync() for link in self._links.values()), return_exceptions=True)

    async def _applied(self, seconds: float) -> None:
        """Returns when every front-end has carried out what it was told, or after so many seconds."""
        waits = (link.applied(seconds) for link in self._links.values())
        await asyncio.gather(*waits, return_exceptions=True)

    async def _informed(self) -> None:
        """Returns when every front-end knows what is served, and how healthy it is; or after a limit."""
        waits = (link.informed(_CHANGE_SECONDS) for link in self._links.values())
        await asyncio.gather(*waits, return_exceptions=True)

    def _refresh(self) -> None:
        """`sync`, for a thread that scrapes."""
        if threading.get_ident() != self._thread and not self._loop.is_closed():
            with suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(self.sync(), self._loop).result(1.0)

    def _gauges(self, name: str) -> Iterable[float]:
        return [link.gauges.get(name, 0.0) for link in list(self._links.values())]

    def _serve(self) -> None:
        for link in self._links.values():
            link.serve(self._models)

    def _start_one(self, started: asyncio.Future[None]) -> None:
        """Called when a front-end listens, or does not and says why."""
        if error := started.exception():
            self._fail_to_start(error)
            return
        listening = sum(link.listens for link in self._links.values())
        if listening == self._config.frontends and not self._all_start.done():
            self._all_start.set_result(None)

    def _fail_to_start(self, error: BaseException) -> None:
        if not self._all_start.done():
            self._all_start.set_exception(error)

    async def _live(self, place: int) -> None:
        """Keeps one front-end alive."""
        pause = _LEAST_PAUSE_SECONDS
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                end = f"ended with exit code {await self._run(place)}, and its calls with it"
            except OSError as error:  # too many processes, or too little memory
                end = f"cannot be started: {error}"
                self._fail_to_start(GlowserveError(f"a front-end {end}"))
            if self._stopped.is_set():
                return
            if time.monotonic() - began > _LONG_LIFE_SECONDS:
                pause = _LEAST_PAUSE_SECONDS
            log.error("front-end %d %s; another one starts in %g s", place + 1, end, pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), pause)
            pause = min(2 * pause, _MOST_PAUSE_SECONDS)

    async def _run(self, place: int) -> int:
        """Runs a front-end until it ends; returns its exit code."""
        memory = arena.create()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await self._spawn(theirs.fileno(), memory)
            settings = packed_config(self._config.of_frontend(self._port))
            ours.sendall(len(settings).to_bytes(4, "little") + settings)
            link = FrontendLink(ours, SharedMemory(memory), self._control, self._metrics, self._informed)
        finally:
            os.close(memory)
        self._links[place] = link
        link.started.add_done_callback(self._start_one)
        self._processes.add(process)
        try:
            self._inform(link)
            if self._stopped.is_set():  # while it was started
                _kill(process)
            code = await process.wait()
            with suppress(TimeoutError):  # what it has counted may still be in the socket
                await asyncio.wait_for(link.ended.wait(), _MOST_SECONDS_TO_DIE)
            return code
        finally:
            self._processes.discard(process)
            if not link.started.done():
                link.started.set_exception(GlowserveError("a front-end ended before it listened"))
            link.close()
            del self._links[place]
            self._dropped_lines += link.gauges.get(DROPPED_LINES, 0.0)

    def _inform(self, link: FrontendLink) -> None:
        """Tells a new front-end what is served. If others answer calls already, it listens only when it can, too."""
        if not self._accepts:
            link.tell(Kind.LISTEN)
        link.serve(self._models)
        link.tell(Kind.HEALTH, self._health)
        if self._accepts:
            link.tell(Kind.ACCEPT)
            link.tell(Kind.LISTEN)

    async def _spawn(self, connection: int, memory: int) -> asyncio.subprocess.Process:
        path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
        arguments = (str(connection), str(memory), str(os.getpid()))
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", main.__name__, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(connection, memory),
            start_new_session=True,  # Ctrl-C in a terminal is sent to the whole group of the service's process
            env=os.environ | {"PYTHONPATH": path},
        )

    async def _end(self, seconds: float) -> None:
        """Waits for the ends of the processes, and kills those that take longer."""
        self._stopped.set()
        if not self._all_start.cancel() and not self._all_start.cancelled():
            self._all_start.exception()  # else asyncio logs that nobody has asked for it
        if not self._lives:
            return
        late = (await asyncio.wait(self._lives, timeout=seconds))[1]
        if late and seconds:
            log.error("%d front-ends have not ended in %g s: they are killed", len(late), seconds)
        for process in self._processes:
            _kill(process)
        await asyncio.wait(self._lives, timeout=_MOST_SECONDS_TO_DIE)


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
