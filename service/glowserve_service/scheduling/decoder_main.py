"""The process that decodes pictures: `python -m glowserve_service.scheduling.decoder_main MEMORY SECONDS PARENT`.

Standard input is a socket. A request is a header, JSON after its length, and the files. A response is a kind, a number,
and as many bytes as the number says. `decoder.py` is the other side; it unpickles nothing, since a picture that takes
over this process should gain nothing by it.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from glowserve.images import Preparation
from glowserve.pictures import InvalidPictureError, Pictures, TooManyPixelsError

READY, IMAGES, INVALID, TOO_MANY_PIXELS, NO_MEMORY, FAILED = range(6)
REQUEST = struct.Struct(">I")
"""The length of the header."""
RESPONSE = struct.Struct(">BIQ")
"""The kind, the index of an invalid picture, and the length of what follows."""

# linux/prctl.h
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answers requests until the service closes the socket."""
    memory, seconds, parent = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    # A stopping service still finishes calls; it ends this process.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # even while it decodes, and cannot see that the socket was closed
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    memory = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # where memory runs out, the system ends this process, and not the service
        Path("/proc/self/oom_score_adj").write_text("1000")
    Image.init()  # imports the decoders
    Image.MAX_IMAGE_PIXELS = None  # each request has a limit of its own
    channel = socket.socket(fileno=sys.stdin.fileno())
    requests = channel.makefile("rb")
    channel.sendall(RESPONSE.pack(READY, 0, 0))
    while (length := requests.read(REQUEST.size)) != b"":
        _serve(channel, _read(requests, *REQUEST.unpack(length)), seconds)


def _serve(channel: socket.socket, pictures: Pictures, seconds: float) -> None:
    """Answers one request; nothing of it is kept while the next one arrives."""
    signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process, whatever it does
    kind, index, body = _answer(pictures)
    signal.setitimer(signal.ITIMER_PROF, 0)
    channel.sendall(RESPONSE.pack(kind, index, len(body)))
    channel.sendall(body)


def _answer(pictures: Pictures) -> tuple[int, int, bytes | memoryview]:
    try:
        images = pictures.decode()
    except TooManyPixelsError as error:
        return TOO_MANY_PIXELS, error.index or 0, str(error).encode()
    except InvalidPictureError as error:
        return INVALID, error.index or 0, str(error).encode()
    except MemoryError:
        return NO_MEMORY, 0, b""
    except Exception:
        return FAILED, 0, traceback.format_exc().encode()
    return IMAGES, 0, images.data.cast("B")


def _read(requests: BinaryIO, length: int) -> Pictures:
    header = json.loads(requests.read(length))
    return Pictures(
        [requests.read(size) for size in header["sizes"]],
        tuple(header["shape"]),
        Preparation(**header["preparation"]),
        header["max_pixels"],
    )


if __name__ == "__main__":
    main()
