"""gRPC reflection, v1 and v1alpha: a client that knows nothing but the address learns the contract.

grpcio-reflection has v1alpha alone. Newer clients ask for v1 first, which has the same messages in another package, so
that the same bytes answer both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME
from grpc_reflection.v1alpha import reflection, reflection_pb2

from glowserve.oip import grpc_service_pb2
from glowserve.v1 import glow_service_pb2, manifest_pb2

SERVICE_NAMES = (reflection.SERVICE_NAME.replace("v1alpha", "v1"), reflection.SERVICE_NAME)
"""The full names of the two services."""

# What a client may ask about: the services, and the details of their errors.
_FILES = (
    glow_service_pb2.DESCRIPTOR,
    manifest_pb2.DESCRIPTOR,
    grpc_service_pb2.DESCRIPTOR,
    health_pb2.DESCRIPTOR,
    reflection_pb2.DESCRIPTOR,
    error_details_pb2.DESCRIPTOR,
    status_pb2.DESCRIPTOR,
)


def add_to_server(services: Iterable[str], server: Any) -> None:
    """Adds both services to a server, or to a middleware before one.

    Args:
        services: the full names of the services that are listed beside these two and health.
        server: where to add them.
    """
    listed = (*services, HEALTH_NAME, *SERVICE_NAMES)
    servicer = reflection.aio.ReflectionServicer(listed, pool=_pool())
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
            for name in SERVICE_NAMES
        ]
    )


def _pool() -> Any:
    """A pool of its own: another library of this process may have v1, too, and one pool takes it only once."""
    pool: Any = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(file: Any) -> None:
        if file.name not in added:
            added.add(file.name)
            for each in file.dependencies:
                add(each)
            pool.AddSerializedFile(file.serialized_pb)

    for file in _FILES:
        add(file)
    alpha = descriptor_pb2.FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    text = json_format.MessageToJson(alpha).replace("v1alpha", "v1")
    pool.Add(json_format.Parse(text, descriptor_pb2.FileDescriptorProto()))
    return pool
