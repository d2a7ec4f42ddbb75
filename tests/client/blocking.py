"""An AsyncClient with the methods of Client, so that both have the same tests."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol

import glowserve


class BlockingClient:
    """The methods of Client, each of which runs the method of an AsyncClient on an event loop. For one thread.

    Args:
        target: HOST:PORT of the service.
        timeout: as in Client.
    """

    def __init__(self, target: str, *, timeout: float = 60.0) -> None:
        async def connect() -> glowserve.AsyncClient:
            return glowserve.AsyncClient(target, timeout=timeout)

        self._runner = asyncio.Runner()
        self._client = self._runner.run(connect())

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            started = method(*arguments, **options)
            return self._iterate(started) if inspect.isasyncgen(started) else self._runner.run(started)

        return call

    def _iterate(self, parts: AsyncGenerator[Any, None]) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(parts, None)

        try:
            yield from iter(lambda: self._runner.run(following()), None)
        finally:
            self._runner.run(parts.aclose())

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


class Connect(Protocol):
    """The fixture `connect`: `with connect(target, timeout=1) as client`."""

    def __call__(self, target: str, *, timeout: float = ...) -> AbstractContextManager[glowserve.Client]:
        """A client of HOST:PORT."""
