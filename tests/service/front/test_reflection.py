"""What a client learns who has nothing but the address."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from glowserve_service.server import Server
from grpc_health.v1 import health_pb2, health_pb2_grpc

import glowserve
from glowserve.images import UInt8Array, encode_png

# Runs in an interpreter that cannot import anything of ours: what it knows of the service it was told by reflection,
# and its descriptors lie in a pool of their own.
STRANGER = '''
import json, sys
from pathlib import Path

class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("glowserve", "service", "training", "export"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuses())

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

target, picture = sys.argv[1:]
channel = grpc.insecure_channel(target)
reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
pool = descriptor_pool.DescriptorPool()

def ask(**question):
    request = reflection_pb2.ServerReflectionRequest(**question)
    return next(reflection.ServerReflectionInfo(iter([request]), timeout=60))

def learn(answer):
    """Adds a file, and before it whatever it needs, to the pool."""
    for data in answer.file_descriptor_response.file_descriptor_proto:
        file = descriptor_pb2.FileDescriptorProto.FromString(data)
        if file.name in known:
            continue
        known.add(file.name)
        for name in file.dependency:
            if name not in known:
                learn(ask(file_by_filename=name))
        pool.Add(file)

known = set()
services = [service.name for service in ask(list_services="").list_services_response.service]
learn(ask(file_containing_symbol="glowserve.v1.GlowService"))
service = pool.FindServiceByName("glowserve.v1.GlowService")

def call(method, **fields):
    method = service.methods_by_name[method]
    request = message_factory.GetMessageClass(method.input_type)(**fields)
    response = message_factory.GetMessageClass(method.output_type)
    kind = channel.unary_stream if method.server_streaming else channel.unary_unary
    send = kind(
        f"/{service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response.FromString,
    )
    return send(request, timeout=60)

scored = call("Score", images={"encoded": {"data": [Path(picture).read_bytes()]}}, seed=7)
drawn = list(call("Sample", n=3, temperature=0))
print(json.dumps({
    "services": services,
    "methods": [method.name for method in service.methods],
    "files": sorted(known),
    "model": call("ListModels").models[0].model.name,
    "seed": scored.seed,
    "log_likelihood": [score.log_likelihood for score in scored.scores],
    "samples": sum(len(response.images.encoded.data) for response in drawn),
    "ours": [name for name in sys.modules if name.split(".")[0] in ("glowserve", "service")],
}))
'''


@pytest.fixture(scope="module")
def told(server: Server, digits: UInt8Array, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the stranger found out."""
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "digit.png").write_bytes(encode_png(digits[0]))
    (folder / "stranger.py").write_text(STRANGER)
    command = [sys.executable, "stranger.py", f"127.0.0.1:{server.port}", "digit.png"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


def test_reflection_lists_the_services(told: dict[str, Any]) -> None:
    assert sorted(told["services"]) == [
        "glowserve.v1.GlowService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    ]


def test_reflection_describes_the_whole_contract(told: dict[str, Any]) -> None:
    assert told["methods"] == [
        "Score",
        "ScoreStream",
        "Sample",
        "Encode",
        "Decode",
        "Interpolate",
        "ListModels",
        "GetModel",
        "LoadModel",
        "UnloadModel",
    ]
    protos = Path(__file__).parents[2] / "protos"
    assert {str(file.relative_to(protos)) for file in (protos / "glowserve" / "v1").glob("*.proto")} == {
        name for name in told["files"] if name.startswith("glowserve/")
    }


def test_a_client_that_knows_reflection_alone_can_score_and_sample(
    told: dict[str, Any], client: glowserve.Client, digits: UInt8Array
) -> None:
    assert told["ours"] == []
    assert told["model"] == "digits"
    assert told["seed"] == 7
    assert told["log_likelihood"] == client.score(digits[0], seed=7).log_likelihood.tolist()
    assert told["samples"] == 3


@pytest.fixture
def health(server: Server) -> Iterator[health_pb2_grpc.HealthStub]:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("name", ["", "glowserve.v1.GlowService"])
def test_health_says_serving(health: health_pb2_grpc.HealthStub, name: str) -> None:
    answer = health.Check(health_pb2.HealthCheckRequest(service=name))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watch = health.Watch(health_pb2.HealthCheckRequest(service=name))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_health_does_not_know_a_service_that_is_not_here(health: health_pb2_grpc.HealthStub) -> None:
    request = health_pb2.HealthCheckRequest(service="glowserve.v1.Nobody")
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(request)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = health.Watch(request)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


def test_health_and_reflection_are_not_counted_as_calls(
    server: Server, health: health_pb2_grpc.HealthStub, told: dict[str, Any]
) -> None:
    def methods() -> set[str]:
        return {
            sample.labels["method"]
            for family in server.metrics.registry.collect()
            if family.name == "glowserve_requests"
            for sample in family.samples
        }

    health.Check(health_pb2.HealthCheckRequest())
    assert not methods() & {"Check", "List", "Watch", "ServerReflectionInfo"}
