"""Learns GlowService by reflection alone, and calls it; prints what it found as JSON.

Arguments: HOST:PORT, the path of a picture, and v1 or v1alpha. The program cannot import anything of the project, and
its descriptors lie in a pool of their own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2

OURS = ("glowserve", "glowserve_service", "glowserve_training", "glowserve_export")
SERVICE = "glowserve.v1.GlowService"
DETAILS = [f"google.rpc.{name}" for name in ("ErrorInfo", "BadRequest", "RetryInfo")]
V1 = "grpc.reflection.v1"


class RefusingFinder:
    """Lets imports of the project fail."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".", maxsplit=1)[0] in OURS:
            raise ImportError(name)


class ReflectionClient:
    """Knows what reflection has described."""

    def __init__(self, channel: grpc.Channel, version: str) -> None:
        self._channel = channel
        self._version = version
        self._request: Any = reflection_pb2.ServerReflectionRequest
        self._response: Any = reflection_pb2.ServerReflectionResponse
        self._pool: Any = descriptor_pool.DescriptorPool()
        self.files: set[str] = set()

    def ask(self, **question: str) -> Any:
        stream = self._channel.stream_stream(
            f"/grpc.reflection.{self._version}.ServerReflection/ServerReflectionInfo",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self._response.FromString,
        )
        return next(stream(iter([self._request(**question)]), timeout=60))

    def speak_v1(self) -> dict[str, dict[str, int]]:
        """Asks from now on in messages that the service itself described; returns the numbers of their fields."""
        self.learn(self.ask(file_containing_symbol=f"{V1}.ServerReflection"))
        names = ("ServerReflectionRequest", "ServerReflectionResponse")
        messages = [self._pool.FindMessageTypeByName(f"{V1}.{name}") for name in names]
        self._request, self._response = map(message_factory.GetMessageClass, messages)
        file = messages[0].file
        return {
            name: {field.name: field.number for field in message.fields}
            for name, message in file.message_types_by_name.items()
        }

    def learn(self, answer: Any) -> None:
        """Adds files to the pool, after the files that they import."""
        for data in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            if file.name in self.files:
                continue
            self.files.add(file.name)
            for name in file.dependency:
                if name not in self.files:
                    self.learn(self.ask(file_by_filename=name))
            self._pool.Add(file)

    @property
    def service(self) -> Any:
        return self._pool.FindServiceByName(SERVICE)

    def call(self, name: str, **fields: Any) -> Any:
        method = self.service.methods_by_name[name]
        request = message_factory.GetMessageClass(method.input_type)(**fields)
        response = message_factory.GetMessageClass(method.output_type)
        kind = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
        send: Any = kind(
            f"/{SERVICE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return send(request, timeout=60)


def main(target: str, picture: str, version: str) -> dict[str, Any]:
    with grpc.insecure_channel(target) as channel:
        client = ReflectionClient(channel, version)
        v1 = client.speak_v1()
        services = [each.name for each in client.ask(list_services="").list_services_response.service]
        client.learn(client.ask(file_containing_symbol=SERVICE))
        scored = client.call("Score", images={"encoded": {"data": [Path(picture).read_bytes()]}}, seed=7)
        sampled = list(client.call("Sample", n=3, temperature=0))
        describe = lambda name: client.ask(file_containing_symbol=name)  # noqa: E731
        found = [name for name in services if describe(name).HasField("file_descriptor_response")]
        types = [name for name in DETAILS if describe(name).HasField("file_descriptor_response")]
        return {
            "v1": v1,
            "described": found,
            "types": types,
            "services": services,
            "methods": [method.name for method in client.service.methods],
            "files": sorted(client.files),
            "model": client.call("ListModels").models[0].model.name,
            "seed": scored.seed,
            "log_likelihood": [score.log_likelihood for score in scored.scores],
            "samples": sum(len(response.images.encoded.data) for response in sampled),
            "ours": [name for name in sys.modules if name.split(".")[0] in OURS],
        }


sys.meta_path.insert(0, RefusingFinder())
sys.stdout.write(json.dumps(main(*sys.argv[1:])))
