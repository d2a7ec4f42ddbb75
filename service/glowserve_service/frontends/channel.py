"""Frames on a Unix socket between two event loops: what a turn of the loop brings is sent in one write."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

_HEADER = struct.Struct("<IB")
"""The length of what follows it, and the kind."""
_MOST_READ = 2**18


class Channel:
    """One end of the socket.

    Args:
        connection: the socket, which belongs to the channel from now on.
        on_frame: called with the kind and the content of each frame.
        on_end: called once the other end is closed.
    """

    def __init__(
        self, connection: socket.socket, on_frame: Callable[[int, bytes], None], on_end: Callable[[], None]
    ) -> None:
        self._connection, self._on_frame, self._on_end = connection, on_frame, on_end
        self._loop = asyncio.get_running_loop()
        self._sent, self._received = bytearray(), bytearray()
        self._flushing = self._is_full = self._is_closed = False
        connection.setblocking(False)
        self._loop.add_reader(connection, self._read)

    def send(self, kind: int, *parts: bytes) -> None:
        """Sends a frame, with all others of this turn of the event loop. Does nothing after the end."""
        if self._is_closed:
            return
        self._sent += _HEADER.pack(sum(map(len, parts)), kind)
        for part in parts:
            self._sent += part
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    async def drained(self) -> None:
        """Returns when all frames are sent, or the other end is closed."""
        while self._flushing:
            await asyncio.sleep(0.001)

    def close(self) -> None:
        """Closes the socket."""
        if not self._is_closed:
            self._is_closed, self._flushing = True, False
            self._loop.remove_reader(self._connection)
            self._loop.remove_writer(self._connection)
            self._connection.close()

    def _flush(self) -> None:
        if self._is_closed:
            return
        try:
            del self._sent[: self._connection.send(self._sent)]
        except BlockingIOError:
            pass
        except OSError:  # the reader sees the end, after what the other side has still sent
            self._sent.clear()
        self._flushing = bool(self._sent)
        if self._flushing == self._is_full:  # as nearly always: all was sent
            return
        self._is_full = self._flushing
        if self._is_full:
            self._loop.add_writer(self._connection, self._flush)
        else:
            self._loop.remove_writer(self._connection)

    def _read(self) -> None:
        try:
            data = self._connection.recv(_MOST_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self._on_end()
            return
        self._received += data
        self._take_frames()

    def _take_frames(self) -> None:
        first, received = 0, self._received
        while len(received) - first >= _HEADER.size:
            length, kind = _HEADER.unpack_from(received, first)
            begin = first + _HEADER.size
            if len(received) < begin + length:
                break
            first = begin + length
            self._on_frame(kind, bytes(received[begin:first]))
        del received[:first]
