"""Learns GlowService by reflection alone, and calls it; prints what it found as JSON.

Arguments: HOST:PORT, and the path of a picture. The program cannot import anything of the project, and its descriptors
lie in a pool of their own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

OURS = ("glowserve", "glowserve_service", "glowserve_training", "glowserve_export")
SERVICE = "glowserve.v1.GlowService"


class RefusingFinder:
    """Lets imports of the project fail."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".", maxsplit=1)[0] in OURS:
            raise ImportError(name)


class ReflectionClient:
    """Knows what reflection has described."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        self._pool: Any = descriptor_pool.DescriptorPool()
        self.files: set[str] = set()

    def ask(self, **question: str) -> Any:
        request = reflection_pb2.ServerReflectionRequest(**question)
        return next(self._reflection.ServerReflectionInfo(iter([request]), timeout=60))

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


def main(target: str, picture: str) -> dict[str, Any]:
    with grpc.insecure_channel(target) as channel:
        client = ReflectionClient(channel)
        services = [each.name for each in client.ask(list_services="").list_services_response.service]
        client.learn(client.ask(file_containing_symbol=SERVICE))
        scored = client.call("Score", images={"encoded": {"data": [Path(picture).read_bytes()]}}, seed=7)
        sampled = list(client.call("Sample", n=3, temperature=0))
        return {
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
