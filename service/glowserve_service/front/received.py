"""The bytes that callers have sent and that are not answered yet: a budget for all calls together.

A message counts with its size from when it has been received until it is answered, and no thread works on it any more.
What gRPC has received of an unfinished message cannot be seen from Python. A message that has not arrived at once could
become as long as any, and the memory of the process shows what the unfinished ones take together.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeVar

import grpc

from glowserve.runtime.errors import InvalidRequestError
from glowserve_service.allocator import trim
from glowserve_service.errors import BytesExhaustedError

T = TypeVar("T")

# A message that fits into HTTP/2's window has usually arrived by the time it is read.
_PROMPT_SECONDS = 0.02
# 64 MiB in that time are 1.8 Mbit/s.
_LONGEST_SECONDS = 300.0
_LONG_BYTES = 2**20


class ReceivedBytes:
    """The budget.

    Args:
        most: how many bytes may be held.
        max_message: the longest message, in bytes.
    """

    def __init__(self, most: int = sys.maxsize, max_message: int = 1) -> None:
        self._most = most
        self._max_message = max_message
        self._usual = 0
        """The memory of this process without what it has received."""
        self._held = 0
        self._lock = threading.RLock()
        # The calls that await a message, and since when; the first ones have waited longest.
        self._awaited: dict[asyncio.Task[Any], float] = {}
        self._seen: list[asyncio.Task[Any]] = []
        self._slow: list[asyncio.Task[Any]] = []
        """Awaited one before the last two looks: it did not arrive at once, however busy the event loop is."""
        self._watching = False

    @property
    def held(self) -> int:
        """The bytes of the messages that are received and not answered. From any thread."""
        return self._held

    def begin(self) -> None:
        """Called when the service has loaded its models, and before it accepts calls."""
        self._usual = _resident_bytes()

    def has_room(self, size: int) -> bool:
        """Whether so many bytes are within the budget."""
        return self._held + size <= self._most

    def take(self, size: int, *, must: bool = False) -> None:
        """Adds the bytes of a message.

        Args:
            size: how many.
            must: whether they are added even if they exceed the budget.

        Raises:
            BytesExhaustedError: they would exceed the budget; nothing was added.
        """
        with self._lock:
            if not (must or self.has_room(size)):
                raise BytesExhaustedError(
                    f"the request has {size} bytes and the server holds {self._held} of other requests; it takes "
                    f"{self._most}; try again later, with increasing pauses"
                )
            self._held += size

    def give_back(self, size: int) -> None:
        """Removes bytes. From any thread."""
        with self._lock:
            self._held -= size

    async def receive(self, context: Any) -> bytes:
        """The only message of a call, which is not counted yet.

        Args:
            context: gRPC's.

        Raises:
            BytesExhaustedError: it has not arrived, and all messages that arrive together take too much memory.
            InvalidRequestError: the caller has sent none, or not all of it in five minutes.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        began = self._awaited[task] = loop.time()
        if not self._watching:
            self._watching = True
            loop.call_later(_PROMPT_SECONDS, self._watch)
        try:
            message = await context.read()
        except asyncio.CancelledError:
            if task in self._awaited or task.uncancel():  # the caller has cancelled the call
                raise
            if loop.time() - began > _LONGEST_SECONDS:
                raise InvalidRequestError(
                    f"the request did not arrive in {_LONGEST_SECONDS:g} seconds"
                ) from None
            raise BytesExhaustedError(
                f"the requests that arrive now and those that the server holds exceed {self._most} bytes; try again "
                "later, with increasing pauses"
            ) from None
        finally:
            self._awaited.pop(task, None)
        if message is grpc.aio.EOF:
            # If the caller has cancelled the call, gRPC cancels this coroutine, a little later.
            await asyncio.sleep(_PROMPT_SECONDS)
            raise InvalidRequestError("the call has no request")
        received: bytes = message
        if len(received) > _LONG_BYTES:
            self._give_up()  # while long messages are copied, `_watch` does not get its turn
        return received

    def _watch(self) -> None:
        """Looks after the messages that have not arrived at once, until all have."""
        self._slow, self._seen = self._seen, list(self._awaited)
        self._give_up()
        loop = asyncio.get_running_loop()
        self._watching = bool(self._awaited)
        if self._watching:
            loop.call_later(_PROMPT_SECONDS, self._watch)
        elif not self._held and self._has_grown():
            loop.run_in_executor(None, self._settle)

    def _give_up(self) -> None:
        """Gives up messages that are late, and some of those that have not arrived at once if they take too much."""
        now = asyncio.get_running_loop().time()
        slow = [task for task in self._slow if task in self._awaited]
        late = [task for task in slow if now - self._awaited[task] > _LONGEST_SECONDS]
        # The oldest ones: they have brought the most.
        excess = slow[: len(slow) - self._room_for(len(slow))]
        for task in {*late, *excess}:
            del self._awaited[task]
            task.cancel()

    def _room_for(self, slow: int) -> int:
        """How many of so many unfinished messages may arrive: all, unless they could take too much memory, and do."""
        room = max(0, self._most - self._held) // self._max_message
        # A message takes as much again when it is complete, and is copied and parsed.
        if slow <= room or _resident_bytes() - self._usual <= self._most / 2:
            return slow
        return room

    def _settle(self) -> None:
        """Takes the memory of this process for the usual one, while there is no message. In a thread."""
        # The allocator keeps what long messages took, and would take as much again for the next ones.
        trim()
        self._usual = _resident_bytes()

    def _has_grown(self) -> bool:
        """Whether the process takes much more memory than usual: by long messages, or by a model that was loaded."""
        return _resident_bytes() - self._usual > self._most / 4


class Holding:
    """The messages of one call that are not answered yet.

    Args:
        received: the budget; None: there is none.
    """

    def __init__(self, received: ReceivedBytes | None = None) -> None:
        self._messages: _Messages | None = _Messages(received or ReceivedBytes())

    def add(self, size: int) -> None:
        """Adds a message of so many bytes; raises BytesExhaustedError."""
        if self._messages:
            self._messages.add(size)

    @property
    def newest(self) -> int:
        """The bytes of the newest message; 0 after the end."""
        return self._messages.newest if self._messages else 0

    def answered(self) -> None:
        """Gives back the bytes of the oldest message."""
        if self._messages:
            self._messages.remove()

    async def room(self) -> None:
        """Returns when another message like the newest would be within the budget, or none of these is unanswered."""
        while self._messages and self._messages.lack_room():
            await asyncio.sleep(_PROMPT_SECONDS / 10)

    def end(self) -> None:
        """Gives back all of them, or lets the last kept function do so."""
        self._messages = None

    def kept(self, function: Callable[[], T]) -> Callable[[], T]:
        """The same function. The messages count, even after the end of the call, as long as anybody refers to it."""
        return partial(_call, function, self._messages)


class _Messages:
    """The sizes of messages. They are given back when nobody refers to this."""

    def __init__(self, received: ReceivedBytes) -> None:
        self._received = received
        self._sizes: deque[int] = deque()

    def add(self, size: int) -> None:
        self._received.take(size)
        self._sizes.append(size)

    @property
    def newest(self) -> int:
        return self._sizes[-1]

    def lack_room(self) -> bool:
        return bool(self._sizes) and not self._received.has_room(self._sizes[-1])

    def remove(self) -> None:
        self._received.give_back(self._sizes.popleft())

    def __del__(self) -> None:
        self._received.give_back(sum(self._sizes))


def free_frames(error: BaseException | None) -> None:
    """Clears the frames that an error has passed: they hold the request.

    gRPC keeps the exception that ends a call, and with it this error, until Python's garbage collector comes by.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _call(function: Callable[[], T], _: _Messages | None) -> T:
    return function()


def _resident_bytes() -> int:
    """The memory of this process; 0 where the system does not say."""
    file = _statm()
    return 0 if file is None else int(os.pread(file, 128, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")


@cache
def _statm() -> int | None:
    """The open file with the memory of this process; None where there is none."""
    try:
        return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
