"""grpc.health.v1.Health: whether the service accepts calls, and whether each of its models works.

gRPC's own asyncio servicer keeps watches open for good, and a drain waits for every open call; also, when a watch ends,
other watches of the same service are no longer notified. Here watches end after a last NOT_SERVING.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME

LIVE = "glowserve.live"
"""The name that is SERVING for as long as the process answers: what a liveness probe asks for."""

_Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no stubs
    """The status of each service and model: what `set` says between `serve` and `stop`, and NOT_SERVING otherwise.

    Args:
        services: the names of the services; "" stands for all of them.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(services)
        self._ready: dict[str, bool] = {**dict.fromkeys(self._services, False), LIVE: True}
        self._changed = asyncio.Event()
        self._open = self._stopping = False

    def set(self, ready: bool, models: Mapping[str, bool]) -> None:
        """Sets whether the service and its models are ready.

        Args:
            ready: of the services.
            models: of each model, by its name. A model whose name is a service's is left out.
        """
        self._ready = {**models, **dict.fromkeys(self._services, ready), LIVE: True}
        self._wake()

    def serve(self) -> None:
        """From now on, the status is what `set` says."""
        self._open = True
        self._wake()

    def stop(self) -> None:
        """From now on, every status is NOT_SERVING; watches end."""
        self._stopping = True
        self._wake()

    def is_serving(self, name: str) -> bool:
        """Whether the status is SERVING."""
        if name == LIVE:
            return True
        return self._open and not self._stopping and self._ready.get(name, False)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The status of a service or model."""
        if request.service not in self._ready:
            message = f"there is no service or model {request.service[:128]!r}; List names all of them"
            await context.abort(grpc.StatusCode.NOT_FOUND, message)
        return _Status(status=self._status(request.service))

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """The status of a service or model, now and whenever it changes."""
        sent = None
        while True:
            changed = self._changed
            if (status := self._status(request.service)) != sent:
                sent = status
                yield _Status(status=status)
            if self._stopping and changed is self._changed:
                return
            await changed.wait()

    async def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The status of every service and model."""
        return _ListResponse(statuses={name: {"status": self._status(name)} for name in self._ready})

    def _status(self, name: str) -> Any:
        if name not in self._ready:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if self.is_serving(name) else _Status.NOT_SERVING

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def add_to_server(health: Health, server: Any) -> None:
    """Adds the health service to a server, or to a middleware before one."""
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if not hasattr(health_pb2, "HealthListResponse"):
        handler: Any = grpc.unary_unary_rpc_method_handler(
            health.List, response_serializer=lambda response: response.SerializeToString()
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE_NAME, {"List": handler}),)
        )


def _list_response() -> Any:
    """HealthListResponse: `map<string, HealthCheckResponse> statuses = 1`. The oldest supported stubs lack it."""
    if hasattr(health_pb2, "HealthListResponse"):
        return health_pb2.HealthListResponse
    field = descriptor_pb2.FieldDescriptorProto
    package = health_pb2.DESCRIPTOR.package
    file = descriptor_pb2.FileDescriptorProto(
        name="health_list.proto", package=package, syntax="proto3", dependency=[health_pb2.DESCRIPTOR.name]
    )
    response = file.message_type.add(name="HealthListResponse")
    entry = response.nested_type.add(name="StatusesEntry", options={"map_entry": True})
    entry.field.add(name="key", number=1, label=field.LABEL_OPTIONAL, type=field.TYPE_STRING)
    for message, name, number, label, kind in (
        (entry, "value", 2, field.LABEL_OPTIONAL, _Status.DESCRIPTOR.full_name),
        (response, "statuses", 1, field.LABEL_REPEATED, f"{package}.HealthListResponse.StatusesEntry"),
    ):
        message.field.add(
            name=name, number=number, label=label, type=field.TYPE_MESSAGE, type_name=f".{kind}"
        )
    pool: Any = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(health_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.HealthListResponse"))


_ListResponse = _list_response()
