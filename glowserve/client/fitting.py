"""Fits the portions of a client's calls to the limits of the service, which its refusals tell.

A service may take less in one call than a portion of `glowserve.client.inputs` has. The noise of an image depends on
the seed and the image alone, so that smaller calls change no result.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from contextlib import aclosing, closing
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import grpc
import numpy as np

from glowserve.client.errors import RequestError
from glowserve.client.inputs import DEFAULT_LIMITS, Portion, split
from glowserve.images import InvalidImageError, check_encoded

Response = TypeVar("Response")

Refused: TypeAlias = Callable[[int, str], None]
"""Is told of an image that is left out: its position among the images without a response, and why it was refused."""

# How messages of the service begin that name an image of a request by its index.
_INDEX = re.compile(r"^(images\.encoded\.data\[|images: image |latents: row |classes\[)(\d+)")
# How a message of the service begins that refuses one image of a request.
_IN_REQUEST = re.compile(r"^images\.encoded\.data\[(\d{1,9})\]: ")
# A service that fails at so many single images, and answers none between, fails at all of them.
_MOST_FAILURES = 8
# What servers of gRPC say of a message over their size limit: in C++ and Python, in Go, in Java.
_TOO_LARGE = re.compile(r"message larger than max|message exceeds maximum size")

# For all clients: limits are lowered once or twice in the life of each, and locks cannot be pickled.
_LOCK = threading.Lock()


class Fitting:
    """Splits portions until the service takes them, and remembers what it takes. Threads may share it."""

    def __init__(self) -> None:
        self._limits = DEFAULT_LIMITS

    def calls(self, call: Callable[[Portion], Response], portions: Iterable[Portion]) -> Iterator[Response]:
        """The response to each portion, in a call of its own.

        Raises:
            RequestError: a call failed. An index of an image in the message counts the images of all portions.
        """
        unanswered = _Unanswered(self)
        for part in self._parts(portions):
            unanswered.append(part)
            while unanswered:
                try:
                    response = call(unanswered.first)
                except RequestError as error:
                    unanswered.split_after(error)
                else:
                    unanswered.answer()
                    yield response

    async def calls_async(
        self, call: Callable[[Portion], Awaitable[Response]], portions: AsyncIterator[Portion]
    ) -> AsyncGenerator[Response, None]:
        """`calls` for event loops."""
        unanswered = _Unanswered(self)
        async for part in self._parts_async(portions):
            unanswered.append(part)
            while unanswered:
                try:
                    response = await call(unanswered.first)
                except RequestError as error:
                    unanswered.split_after(error)
                else:
                    unanswered.answer()
                    yield response

    def stream(
        self,
        open_stream: Callable[[Iterator[Portion]], Generator[Response, None, None]],
        portions: Iterable[Portion],
        refused: Refused | None = None,
    ) -> Generator[Response, None, None]:
        """The response to each portion, over one stream, or over another after each refusal.

        Args:
            open_stream: opens a stream that returns one response for each portion.
            portions: the portions; at most as far ahead as the stream reads.
            refused: is told of images that the service refuses, which are left out. Without it they end the stream.

        Raises:
            RequestError: a stream failed. An index of an image in the message counts the images of all portions.
        """
        parts, unanswered = self._parts(portions), _Unanswered(self, refused)

        def outgoing() -> Iterator[Portion]:
            yield from unanswered.sent_again()
            for part in () if unanswered.held else parts:
                unanswered.append(part)
                yield part

        ended = False
        while not ended:
            try:
                with closing(open_stream(outgoing())) as responses:
                    for response in responses:
                        unanswered.answer()
                        yield response
                ended = not unanswered.release()
            except RequestError as error:
                unanswered.split_after(error, streamed=True)

    async def stream_async(
        self,
        open_stream: Callable[[AsyncIterator[Portion]], AsyncGenerator[Response, None]],
        portions: AsyncIterator[Portion],
        refused: Refused | None = None,
    ) -> AsyncGenerator[Response, None]:
        """`stream` for event loops."""
        parts, unanswered = self._parts_async(portions), _Unanswered(self, refused)

        async def outgoing() -> AsyncIterator[Portion]:
            for part in unanswered.sent_again():
                yield part
            while not unanswered.held and (following := await anext(parts, None)) is not None:
                unanswered.append(following)
                yield following

        ended = False
        while not ended:
            try:
                async with aclosing(open_stream(outgoing())) as responses:
                    async for response in responses:
                        unanswered.answer()
                        yield response
                ended = not unanswered.release()
            except RequestError as error:  # pictures may be decoded to find those that are damaged
                await asyncio.to_thread(unanswered.split_after, error, streamed=True)

    def smaller(self, portion: Portion, refusal: RequestError) -> bool:
        """Lowers the limits after a refusal, and says whether they split the refused portion."""
        if not (refusal.limits or is_too_large(refusal)):
            return False
        with _LOCK:
            return self._lower(portion, refusal)

    def _lower(self, portion: Portion, refusal: RequestError) -> bool:
        limits = self._limits
        images = refusal.limits.get("max_images_per_call", limits.images)
        pixels = refusal.limits.get("max_pixels_per_call", limits.pixels)
        size = size_of(portion) // 2 if is_too_large(refusal) else limits.size
        self._limits = replace(
            limits,
            images=min(images, limits.images),
            pixels=min(pixels, limits.pixels),
            size=min(size, limits.size),
        )
        return len(list(self.split(portion))) > 1

    def split(self, portion: Portion) -> Iterable[Portion]:
        """The parts of a portion that the service takes, as far as it is known."""
        return [portion] if self._limits == DEFAULT_LIMITS else split(portion, self._limits)

    def _parts(self, portions: Iterable[Portion]) -> Iterator[Portion]:
        for portion in portions:
            yield from self.split(portion)

    async def _parts_async(self, portions: AsyncIterator[Portion]) -> AsyncIterator[Portion]:
        async for portion in portions:
            for part in self.split(portion):
                yield part


class _Unanswered:
    """The portions that were sent, or are sent next, and have no response."""

    def __init__(self, fitting: Fitting, refused: Refused | None = None) -> None:
        self._fitting = fitting
        self._refused = refused
        self._failures = 0
        self._portions: deque[Portion] = deque()
        self._images_before = 0
        self.held = 0
        """How many are sent alone in the next stream, since the one after them ends it before they are answered."""

    def __len__(self) -> int:
        return len(self._portions)

    @property
    def first(self) -> Portion:
        return self._portions[0]

    def sent_again(self) -> list[Portion]:
        """The portions that a new stream begins with."""
        return list(self._portions)[: self.held or None]

    def append(self, portion: Portion) -> None:
        self._portions.append(portion)

    def answer(self) -> None:
        """The first portion has its response."""
        self._images_before += len(self._portions.popleft())
        self._failures = 0

    def release(self) -> bool:
        """Whether portions were held back, which the next stream sends."""
        held, self.held = self.held, 0
        return bool(held)

    def split_after(self, refusal: RequestError, *, streamed: bool = False) -> None:
        """Splits the portions, so that the next call or stream gets further. Raises the refusal if none would.

        The service refuses the first portion, but gRPC refuses a message of a stream when it arrives, while the
        portions before it have no response: then it is the largest.
        """
        if not self._portions:
            raise refusal
        sizes = [size_of(each) for each in self.sent_again()]
        refused = sizes.index(max(sizes)) if streamed and is_too_large(refusal) else 0
        self.held = 0
        if self._fitting.smaller(self._portions[refused], refusal):
            self._portions = deque(part for each in self._portions for part in self._fitting.split(each))
        elif refused:
            self.held = refused
        elif self._refused is None or not self._concerns_images(refusal):
            raise self._with_index(refusal) from None
        else:
            self._leave_out(refusal, self._refused)

    def _concerns_images(self, refusal: RequestError) -> bool:
        """Whether the call may succeed without some image of the first portion."""
        invalid = refusal.code is grpc.StatusCode.INVALID_ARGUMENT
        if is_too_large(refusal) or (invalid and refusal.field):
            return not invalid or refusal.field.startswith("images")
        # A picture may have crashed its decoder; or the service fails whatever it is sent.
        failed = refusal.code is grpc.StatusCode.INTERNAL and refusal.reason
        if not (invalid or failed) or isinstance(self.first, np.ndarray):
            return False
        self._failures += len(self.first) == 1
        return self._failures <= _MOST_FAILURES

    def _leave_out(self, refusal: RequestError, refused: Refused) -> None:
        """Leaves out the images of the first portion that were refused; or halves it, if they are not known."""
        portion = self._portions.popleft()
        named = _IN_REQUEST.match(refusal.message)
        if named and int(named[1]) < len(portion):
            reasons = _damaged(portion) | {int(named[1]): _reason(portion, refusal)}
        elif isinstance(portion, list) and len(portion) > 1:
            half = len(portion) // 2
            self._portions.extendleft([portion[half:], portion[:half]])
            return
        else:  # arrays of one portion have one shape, and are refused together
            reasons = dict.fromkeys(range(len(portion)), _reason(portion, refusal))
        for i in sorted(reasons, reverse=True):
            refused(i, reasons[i])
        self._images_before += len(reasons)
        if kept := [i for i in range(len(portion)) if i not in reasons]:
            self._portions.appendleft(
                portion[kept] if isinstance(portion, np.ndarray) else [portion[i] for i in kept]
            )

    def _with_index(self, refusal: RequestError) -> RequestError:
        """The refusal of the first portion, with the index that the caller counts."""
        before, message = self._images_before, refusal.message
        if is_too_large(refusal):
            return refusal.with_message(f"images[{before}]: {_too_large(self.first, refusal)}")
        return refusal.with_message(_INDEX.sub(lambda found: f"{found[1]}{before + int(found[2])}", message))


def _reason(portion: Portion, refusal: RequestError) -> str:
    """Why an image of a portion was refused, in words that do not count images."""
    message = _too_large(portion, refusal) if is_too_large(refusal) else _IN_REQUEST.sub("", refusal.message)
    return f"{refusal.code.name}: {message}"


def _too_large(portion: Portion, refusal: RequestError) -> str:
    return (
        f"with {size_of(portion)} bytes it is larger than a message to this service may be; "
        f"pass a smaller picture, or serve with a larger --max-message-mib ({refusal.message})"
    )


def _damaged(portion: Portion) -> dict[int, str]:
    """The files that are damaged, by their index, and why: a refusal names the first alone."""
    found = {}
    for i, file in enumerate(portion) if isinstance(portion, list) else ():
        try:
            check_encoded(file)
        except InvalidImageError as error:
            found[i] = f"{grpc.StatusCode.INVALID_ARGUMENT.name}: {error}"
    return found


def is_too_large(error: RequestError) -> bool:
    """Whether gRPC itself refused a message over a size limit; a smaller one may be accepted."""
    exhausted = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and not error.reason
    return exhausted and _TOO_LARGE.search(error.message) is not None


def size_of(portion: Any) -> int:
    """The bytes of a portion."""
    return sum(map(len, portion)) if isinstance(portion, list) else portion.nbytes
