"""grpc.health.v1.Health: whether the service takes calls.

gRPC's own asyncio servicer keeps watches open for good, and a drain waits for every open call; also, the first watch
to end leaves the others on its service unheard. Here watches end with the service's last word, NOT_SERVING.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no stubs
    """Says of each service whether it takes calls: not yet, then yes, at last no longer.

    Args:
        names: of the services; "" stands for all of them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._status = dict.fromkeys(names, _Status.NOT_SERVING)
        self._changed = asyncio.Event()
        self._stopping = False

    def serve(self) -> None:
        """Says SERVING from now on."""
        self._set(_Status.SERVING)

    def stop(self) -> None:
        """Says NOT_SERVING for good, and ends the watches."""
        self._stopping = True
        self._set(_Status.NOT_SERVING)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The status of a service."""
        if request.service not in self._status:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"service {request.service[:128]!r} is not here")
        return _Status(status=self._status[request.service])

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """The status of a service, now and whenever it changes."""
        while True:
            changed = self._changed
            yield _Status(status=self._status.get(request.service, _Status.SERVICE_UNKNOWN))
            if self._stopping and changed is self._changed:
                return
            await changed.wait()

    def _set(self, status: Any) -> None:
        self._status = dict.fromkeys(self._status, status)
        self._changed.set()
        self._changed = asyncio.Event()
