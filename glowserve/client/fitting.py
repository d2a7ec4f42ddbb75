"""Fits the portions of a client's calls to the limits of the service, which its refusals tell.

A service may take less in one call than a portion of `glowserve.client.inputs` has. The noise of an image depends on
the seed and the image alone, so that smaller calls change no result.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from contextlib import aclosing, closing
from dataclasses import replace
from typing import Any, TypeVar

import grpc

from glowserve.client.errors import RequestError
from glowserve.client.inputs import DEFAULT_LIMITS, Portion, split

Response = TypeVar("Response")

# How messages of the service begin that name an image of a request by its index.
_INDEX = re.compile(r"^(images\.encoded\.data\[|images: image |latents: row )(\d+)")
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
    ) -> Generator[Response, None, None]:
        """The response to each portion, over one stream, or over another after each refusal.

        Args:
            open_stream: opens a stream that returns one response for each portion.
            portions: the portions; at most as far ahead as the stream reads.

        Raises:
            RequestError: a stream failed. An index of an image in the message counts the images of all portions.
        """
        parts, unanswered = self._parts(portions), _Unanswered(self)

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
    ) -> AsyncGenerator[Response, None]:
        """`stream` for event loops."""
        parts, unanswered = self._parts_async(portions), _Unanswered(self)

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
            except RequestError as error:
                unanswered.split_after(error, streamed=True)

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

    def __init__(self, fitting: Fitting) -> None:
        self._fitting = fitting
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
        else:
            raise self._with_index(refusal) from None

    def _with_index(self, refusal: RequestError) -> RequestError:
        """The refusal of the first portion, with the index that the caller counts."""
        before, message = self._images_before, refusal.message
        if is_too_large(refusal):
            size = size_of(self.first)
            return refusal.with_message(
                f"images[{before}]: with {size} bytes it is larger than a message to this service may be; "
                f"pass a smaller picture, or serve with a larger --max-message-mib ({message})"
            )
        return refusal.with_message(_INDEX.sub(lambda found: f"{found[1]}{before + int(found[2])}", message))


def is_too_large(error: RequestError) -> bool:
    """Whether gRPC itself refused a message over a size limit; a smaller one may be accepted."""
    exhausted = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and not error.reason
    return exhausted and _TOO_LARGE.search(error.message) is not None


def size_of(portion: Any) -> int:
    """The bytes of a portion."""
    return sum(map(len, portion)) if isinstance(portion, list) else portion.nbytes
