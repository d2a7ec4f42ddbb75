"""Many connections to a service with front-ends, and the processes of these."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from glowserve_service.frontends.frontends import Frontends
from glowserve_service.server import Server

from tests.service.stubs import Stubs, connect

CONNECTIONS = 16
"""So many that no front-end is left without one, but in one of 30,000 runs."""


@contextmanager
def connections(target: Server | str) -> Iterator[list[Stubs]]:
    """Stubs on many connections."""
    with ExitStack() as stack:
        yield [stack.enter_context(connect(target)) for _ in range(CONNECTIONS)]


def children(process: int) -> list[int]:
    """The front-ends of an engine process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == process and b"glowserve_service.frontends.main" in command:
            found.append(int(folder.name))
    return sorted(found)


def front_of(server: Server) -> Frontends:
    """The front-ends of a server in this process."""
    assert isinstance(server.front, Frontends)
    return server.front


def processes(server: Server) -> list[int]:
    """The ids of the front-ends of a server in this process."""
    return sorted(process.pid for process in front_of(server)._processes)


def all_listen(server: Server) -> bool:
    """Whether all front-ends of a server in this process have started."""
    links = list(front_of(server)._links.values())
    return len(links) == server.config.frontends and all(link.listens for link in links)


def kill(process: int) -> None:
    """Ends a process, whatever it does."""
    os.kill(process, signal.SIGKILL)


def is_alive(process: int) -> bool:
    """Whether there is a process of that id."""
    return Path(f"/proc/{process}").exists()
