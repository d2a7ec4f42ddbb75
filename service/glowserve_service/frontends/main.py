"""The process of a front-end: `python -m glowserve_service.frontends.main CONNECTION MEMORY PARENT`.

The first two arguments are descriptors: a socket to the engine process, and the memory that both share.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys

from glowserve_service.allocator import share_arenas
from glowserve_service.observability import standard_streams

# linux/prctl.h
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Accepts calls until the engine process says so, or ends."""
    connection, memory, parent = map(int, sys.argv[1:])
    # The engine process is asked to stop, and stops this one.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    share_arenas()
    standard_streams.prepare()

    from glowserve_service.front.front import GC_THRESHOLD
    from glowserve_service.frontends.descriptions import unpacked_config
    from glowserve_service.frontends.frontend import Frontend
    from glowserve_service.observability import logs

    gc.set_threshold(GC_THRESHOLD)
    link = socket.socket(fileno=connection)
    config = unpacked_config(_settings(link))
    log_writer = logs.set_up(config.log_format, config.log_level)
    code = asyncio.run(Frontend(config).run(link, memory))
    log_writer.close()
    os._exit(code)


def _settings(link: socket.socket) -> bytes:
    """The first message of the engine process: its length, and the settings."""
    with link.makefile("rb", buffering=0) as file:
        length, data = int.from_bytes(file.read(4), "little"), b""
        while len(data) < length:
            data += file.read(length - len(data)) or sys.exit(1)
    return data


if __name__ == "__main__":
    main()
