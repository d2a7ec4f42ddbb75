"""`glowserve` whose event loop hangs once it stops, and whose end comes two seconds after the drain.

The first argument says how it hangs; the others are those of `glowserve`. sleep: in a call of the system. lock: in C
code that keeps the interpreter's lock, so that no thread runs.
"""

from __future__ import annotations

import ctypes
import sys
import time

from glowserve_service import server
from glowserve_service.server import Server

from glowserve.cli import main

HANGS = {"sleep": lambda: time.sleep(1e6), "lock": lambda: ctypes.PyDLL(None).sleep(1_000_000)}


async def hang(_: Server) -> None:
    """Never ends."""
    HANGS[sys.argv[1]]()


if __name__ == "__main__":
    Server.stop = hang  # type: ignore[method-assign]
    server._MOST_STOP_SECONDS = 2.0
    sys.exit(main(sys.argv[2:]))
