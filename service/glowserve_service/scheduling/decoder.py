"""A process that decodes pictures, as the service sees it. What runs in it is `decoder_main.py`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from glowserve.images import UInt8Array
from glowserve.pictures import InvalidPictureError, Pictures, TooManyPixelsError
from glowserve_service.scheduling import decoder_main
from glowserve_service.scheduling.decoder_main import REQUEST, RESPONSE

# Files of fewer bytes are joined before they are sent; more would be a copy worth avoiding.
_FEW_BYTES = 2**20

_MOST_SECONDS_TO_START = 60.0


def _exit_code(code: int) -> str:
    return f"exit code {code}"


_TOO_LONG = _exit_code(-signal.SIGPROF)


class DecoderError(Exception):
    """A process does not start, or ended in the middle of its work."""


class Decoder:
    """A process that decodes pictures, one request at a time. It starts at once.

    Args:
        memory: the most memory that the process may take, in bytes.
        seconds: the most CPU time that a request may take.
    """

    def __init__(self, memory: int, seconds: float) -> None:
        self.life = asyncio.create_task(self._live(memory, seconds))
        """Ends with the process."""
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._in_use = asyncio.Lock()
        self._interrupted = self._is_killed = False

    @property
    def usable(self) -> bool:
        """Whether the process can take a request; it may still be starting."""
        return not (self._interrupted or self._is_killed or self.life.done())

    async def ready(self) -> None:
        """Returns when the process has started.

        Raises:
            DecoderError: it does not start.
        """
        either: set[asyncio.Future[Any]] = {self._started, self.life}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not self._started.done():
            raise DecoderError(f"a process to decode pictures does not start: {await self._end()}")

    async def decode(self, pictures: Pictures) -> UInt8Array:
        """The images, uint8 [N, H, W, C]. If it is cancelled, the process has to be ended.

        Raises:
            InvalidPictureError: see `Pictures.decode`.
            MemoryError: the process has too little memory for them.
            TimeoutError: they take too much CPU time.
            DecoderError: the process ended.
        """
        try:
            async with self._in_use:
                self._interrupted = True
                await self._send(pictures)
                kind, index, body = await self._receive_response()
                self._interrupted = False
        except OSError:
            end = await self._end()
            if end == _TOO_LONG:
                raise TimeoutError from None
            raise DecoderError(f"a process that decoded pictures ended: {end}") from None
        if kind == decoder_main.IMAGES:
            return np.frombuffer(body, np.uint8).reshape(pictures.count, *pictures.shape)
        if kind == decoder_main.INVALID:
            raise InvalidPictureError(body.decode(), index)
        if kind == decoder_main.TOO_MANY_PIXELS:
            raise TooManyPixelsError(body.decode(), index)
        if kind == decoder_main.NO_MEMORY:
            raise MemoryError
        raise DecoderError(body.decode())

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        if not self._is_killed:  # a second cancellation would interrupt the wait for its end
            self._is_killed = True
            self.life.cancel()

    async def _live(self, memory: int, seconds: float) -> int:
        """Runs the process, and returns its exit code."""
        self._channel, other_end = socket.socketpair()
        self._channel.setblocking(False)
        try:
            with other_end:
                process = await _start(memory, seconds, other_end.fileno())
            try:
                async with self._in_use, asyncio.timeout(_MOST_SECONDS_TO_START):
                    with contextlib.suppress(OSError):
                        await self._receive_response()
                        self._started.set_result(None)
                return await process.wait()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        finally:
            async with self._in_use:  # whoever reads from it first sees its end
                self._channel.close()

    async def _end(self) -> str:
        """How the process ended. Waits for the end."""
        await asyncio.wait({self.life})
        if self.life.cancelled():
            return "it was killed"
        error = self.life.exception()
        return repr(error) if error else _exit_code(self.life.result())

    async def _send(self, pictures: Pictures) -> None:
        sizes = [len(data) for data in pictures.files]
        header = json.dumps(
            {
                "sizes": sizes,
                "shape": pictures.shape,
                "preparation": asdict(pictures.preparation),
                "max_pixels": pictures.max_pixels,
            }
        ).encode()
        parts: Iterable[bytes] = (REQUEST.pack(len(header)), header, *pictures.files)
        for part in [b"".join(parts)] if sum(sizes) < _FEW_BYTES else parts:
            await asyncio.get_running_loop().sock_sendall(self._channel, part)

    async def _receive_response(self) -> tuple[int, int, bytearray]:
        kind, index, length = RESPONSE.unpack(await self._receive(RESPONSE.size))
        return kind, index, await self._receive(length)

    async def _receive(self, length: int) -> bytearray:
        data = bytearray(length)
        rest = memoryview(data)
        while rest:
            received = await asyncio.get_running_loop().sock_recv_into(self._channel, rest)
            if not received:
                raise ConnectionResetError("the process closed its end")
            rest = rest[received:]
        return data


async def _start(memory: int, seconds: float, stdin: int) -> asyncio.subprocess.Process:
    path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", decoder_main.__name__, str(memory), str(seconds), str(os.getpid())),
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in a terminal is sent to the whole group of the service's process
        env=os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
    )
