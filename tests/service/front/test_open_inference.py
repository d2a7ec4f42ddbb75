"""The Open Inference Protocol: spoken by Triton's own client, and, for what that never sends, by our stubs."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server
from grpc_health.v1 import health_pb2, health_pb2_grpc

import glowserve
from glowserve.images import UInt8Array
from glowserve.oip import grpc_service_pb2 as pb
from glowserve.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.service.wire import SMALL_WINDOW, refusal, wait_for

RunServer = Callable[..., Any]
StartServer = Callable[..., Any]

# tritonclient registers the names that our stubs do, and so lives in a process of its own.
DESCRIBE = '''
import importlib, json, sys
from google.protobuf import descriptor_pb2

def describe(message):
    """Everything that decides how a message looks on the wire and in code."""
    proto = descriptor_pb2.DescriptorProto()
    message.CopyToProto(proto)
    oneofs = [oneof.name for oneof in proto.oneof_decl]
    found[message.full_name] = {
        field.name: [
            field.number, field.type, field.label, field.type_name,
            oneofs[field.oneof_index] if field.HasField("oneof_index") else "",
        ]
        for field in proto.field
    }
    for nested in message.nested_types:
        describe(nested)
    for enum in message.enum_types:
        found[enum.full_name] = {value.name: value.number for value in enum.values}

found = {}
for name in sys.argv[1:]:
    file = importlib.import_module(name).DESCRIPTOR
    for message in file.message_types_by_name.values():
        describe(message)
    for enum in file.enum_types_by_name.values():
        found[enum.full_name] = {value.name: value.number for value in enum.values}
    for service in file.services_by_name.values():
        proto = descriptor_pb2.ServiceDescriptorProto()
        service.CopyToProto(proto)
        found[service.full_name] = {
            method.name: [
                method.input_type, method.output_type, method.client_streaming, method.server_streaming
            ]
            for method in proto.method
        }
print(json.dumps(found))
'''

TRITON = """
import json, queue, sys
import glowserve, service.embedded  # all that users of the client import may live beside it
import numpy as np
import tritonclient.grpc as triton

target, path = sys.argv[1:]
images = np.load(path)
client = triton.InferenceServerClient(target)
told = {}

def tensor(name, array, datatype):
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given

def outputs(result):
    names = [output.name for output in result.get_response().outputs]
    return {name: result.as_numpy(name).tolist() for name in names}

def refusal(call):
    try:
        call()
    except triton.InferenceServerException as error:
        return [error.status(), error.message()]

image = [tensor("image", images, "UINT8")]
told["live"] = client.is_server_live()
told["ready"] = client.is_server_ready()
told["model_ready"] = [
    client.is_model_ready("digits"),
    client.is_model_ready("digits.sample", "1"),
    client.is_model_ready("digits", "2"),
    client.is_model_ready("nobody"),
]
told["server"] = client.get_server_metadata(as_json=True)
told["metadata"] = [client.get_model_metadata(name, as_json=True) for name in ("digits", "digits.sample")]
told["config"] = [client.get_model_config(name, as_json=True)["config"] for name in ("digits", "digits.sample")]
told["index"] = client.get_model_repository_index(as_json=True)["models"]
told["load"] = refusal(lambda: client.load_model("digits"))
told["unload"] = refusal(lambda: client.unload_model("digits"))

scored = client.infer("digits", image, request_id="first")
told["scores"] = outputs(scored)
told["id"] = scored.get_response().id
told["version"] = scored.get_response().model_version
told["dtypes"] = {name: str(scored.as_numpy(name).dtype) for name in told["scores"]}
wanted = [triton.InferRequestedOutput("percentile"), triton.InferRequestedOutput("log_likelihood")]
told["subset"] = outputs(
    client.infer("digits", image, "1", wanted, parameters={"seed": 7}, timeout=10**6)
)

seeds = np.array([[5], [2**64 - 1], [5]], np.uint64)
temperatures = np.array([[0.5], [0.7], [0.0]], np.float32)
rows = [tensor("temperature", temperatures, "FP32"), tensor("seed", seeds, "UINT64")]
drawn = client.infer("digits.sample", rows)
told["samples"] = outputs(drawn)["image"]
told["samples_dtype"] = str(drawn.as_numpy("image").dtype)

told["unknown"] = refusal(lambda: client.infer("nobody", image))
told["sequence"] = refusal(lambda: client.infer("digits", image, sequence_id=3))
shared = triton.InferInput("image", list(images.shape), "UINT8")
shared.set_shared_memory("region", images.nbytes)
told["shared_memory"] = refusal(lambda: client.infer("digits", [shared]))

answers = queue.Queue()
client.start_stream(lambda result, error: answers.put((result, error)))
wrong = [tensor("image", images[:, :4], "UINT8")]
for i in range(len(images)):
    one = [tensor("image", images[i : i + 1], "UINT8")]
    client.async_stream_infer("digits", one, request_id=f"{i}", enable_empty_final_response=i == 3)
    if i == 2:
        client.async_stream_infer("digits", wrong, request_id="wrong")
told["stream"] = []
for _ in range(len(images) + 1):
    result, error = answers.get(timeout=60)
    if error:
        told["stream"].append(["error", error.message()])
    else:
        final = dict(result.get_response().parameters)
        told["stream"].append([
            result.get_response().id,
            outputs(result)["log_likelihood"][0],
            {name: value.bool_param for name, value in final.items()},
        ])
client.stop_stream()
told["statistics"] = client.get_inference_statistics(as_json=True)["model_stats"]
print(json.dumps(told))
"""


def run_script(text: str, *arguments: str, folder: Path) -> dict[str, Any]:
    """What a script prints, run in an interpreter of its own."""
    script = folder / "script.py"
    script.write_text(text)
    ended = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


@pytest.fixture(scope="module")
def fresh(run_server: RunServer) -> Iterator[Server]:
    """A server that nobody has asked anything before `triton`."""
    with run_server() as running:
        yield running


@pytest.fixture(scope="module")
def images(digits: UInt8Array) -> UInt8Array:
    return digits[:9]


@pytest.fixture(scope="module")
def triton(fresh: Server, images: UInt8Array, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Triton's client was told."""
    folder = tmp_path_factory.mktemp("triton")
    np.save(folder / "images.npy", images)
    return run_script(TRITON, f"127.0.0.1:{fresh.port}", str(folder / "images.npy"), folder=folder)


@pytest.fixture(scope="module")
def ours(fresh: Server, triton: dict[str, Any]) -> Iterator[glowserve.Client]:
    """Our client of that server, once the statistics have been asked for."""
    with glowserve.Client(f"127.0.0.1:{fresh.port}") as connected:
        yield connected


@pytest.fixture
def stub(fresh: Server, triton: dict[str, Any]) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(f"127.0.0.1:{fresh.port}") as channel:
        yield GRPCInferenceServiceStub(channel)


Input = pb.ModelInferRequest.InferInputTensor


def image_request(images: UInt8Array, **fields: Any) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(
        model_name="digits",
        inputs=[Input(name="image", datatype="UINT8", shape=images.shape)],
        raw_input_contents=[images.tobytes()],
        **fields,
    )


def sample_request(seeds: list[int], temperatures: list[float]) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(
        model_name="digits.sample",
        inputs=[
            Input(name="seed", datatype="UINT64", shape=[len(seeds), 1]),
            Input(name="temperature", datatype="FP32", shape=[len(temperatures), 1]),
        ],
        raw_input_contents=[np.array(seeds, "<u8").tobytes(), np.array(temperatures, "<f4").tobytes()],
    )


def output(response: pb.ModelInferResponse, name: str) -> np.ndarray[Any, Any]:
    ((tensor, data),) = [
        pair
        for pair in zip(response.outputs, response.raw_output_contents, strict=True)
        if pair[0].name == name
    ]
    dtype = {"FP64": "<f8", "UINT8": "u1"}[tensor.datatype]
    return np.frombuffer(data, dtype).reshape(tuple(tensor.shape))


def in_flight(server: Server) -> float | None:
    return server.metrics.registry.get_sample_value("glowserve_requests_in_flight")


# The contract


def test_every_field_that_we_declare_is_tritons(tmp_path: Path) -> None:
    here = run_script(
        DESCRIBE, "glowserve.oip.grpc_service_pb2", "glowserve.oip.model_config_pb2", folder=tmp_path
    )
    theirs = run_script(
        DESCRIBE, "tritonclient.grpc.service_pb2", "tritonclient.grpc.model_config_pb2", folder=tmp_path
    )
    assert len(here) > 40
    for name, fields in here.items():
        assert name in theirs
        for field, description in fields.items():
            assert (name, field, theirs[name].get(field)) == (name, field, description)
    assert {"ModelInfer", "ModelStreamInfer"} < here["inference.GRPCInferenceService"].keys()


# What Triton's client is told


def test_the_server_and_its_models_are_ready(triton: dict[str, Any]) -> None:
    assert triton["live"]
    assert triton["ready"]
    assert triton["model_ready"] == [True, True, False, False]
    assert triton["server"]["name"] == "glowserve"
    assert triton["server"]["extensions"] == ["model_repository", "model_configuration", "statistics"]


def test_each_model_is_two_and_both_are_described(triton: dict[str, Any]) -> None:
    scorer, sampler = triton["metadata"]
    image = {"name": "image", "datatype": "UINT8", "shape": ["-1", "8", "8", "1"]}
    assert scorer == {
        "name": "digits",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [image],
        "outputs": [
            {"name": name, "datatype": "FP64", "shape": ["-1"]}
            for name in ("log_likelihood", "bits_per_dim", "percentile")
        ],
    }
    assert sampler["name"] == "digits.sample"
    assert sampler["inputs"] == [
        {"name": "seed", "datatype": "UINT64", "shape": ["-1", "1"]},
        {"name": "temperature", "datatype": "FP32", "shape": ["-1", "1"]},
    ]
    assert sampler["outputs"] == [image]
    assert triton["index"] == [
        {"name": name, "version": "1", "state": "READY"} for name in ("digits", "digits.sample")
    ]


def test_the_configuration_says_how_much_a_request_may_hold(triton: dict[str, Any], fresh: Server) -> None:
    scorer, sampler = triton["config"]
    assert scorer["max_batch_size"] == sampler["max_batch_size"] == fresh.config.max_images_per_call
    assert scorer["platform"] == "onnxruntime_onnx"
    assert scorer["input"] == [
        {"name": "image", "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": ["8", "8", "1"]}
    ]
    assert [(entry["name"], entry["data_type"]) for entry in scorer["output"]] == [
        ("log_likelihood", "TYPE_FP64"),
        ("bits_per_dim", "TYPE_FP64"),
        ("percentile", "TYPE_FP64"),
    ]
    assert sampler["input"] == [
        {"name": "seed", "data_type": "TYPE_UINT64", "dims": ["1"]},
        {"name": "temperature", "data_type": "TYPE_FP32", "dims": ["1"]},
    ]
    assert sampler["output"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": ["8", "8", "1"]}]
    assert scorer["dynamic_batching"] == {
        "preferred_batch_size": [fresh.config.max_batch_size],
        "default_queue_policy": {"max_queue_size": fresh.config.max_queue_size},
    }


def test_scores_are_those_of_score_to_the_bit(
    triton: dict[str, Any], ours: glowserve.Client, images: UInt8Array
) -> None:
    scores = ours.score(images)
    assert triton["scores"] == {
        "log_likelihood": scores.log_likelihood.tolist(),
        "bits_per_dim": scores.bits_per_dim.tolist(),
        "percentile": scores.percentile.tolist(),
    }
    assert triton["dtypes"] == dict.fromkeys(triton["scores"], "float64")
    assert (triton["id"], triton["version"]) == ("first", "1")


def test_outputs_may_be_chosen_and_the_seed_too(
    triton: dict[str, Any], ours: glowserve.Client, images: UInt8Array
) -> None:
    scores = ours.score(images, seed=7)
    assert scores.log_likelihood.tolist() != triton["scores"]["log_likelihood"]
    assert list(triton["subset"].items()) == [
        ("percentile", scores.percentile.tolist()),
        ("log_likelihood", scores.log_likelihood.tolist()),
    ]


def test_samples_are_those_of_sample(triton: dict[str, Any], ours: glowserve.Client) -> None:
    assert triton["samples_dtype"] == "uint8"
    rows = [(5, 0.5), (2**64 - 1, 0.7), (5, 0.0)]
    for image, (seed, temperature) in zip(triton["samples"], rows, strict=True):
        assert image == ours.sample(1, seed=seed, temperature=temperature).images[0].tolist()


def test_a_stream_answers_in_order_and_survives_an_error(triton: dict[str, Any]) -> None:
    answers = triton["stream"]
    assert answers[3] == ["error", "input 'image': shape is [9, 4, 8, 1]; this model takes [N, 8, 8, 1]"]
    good = answers[:3] + answers[4:]
    assert [answer[0] for answer in good] == [str(i) for i in range(9)]
    assert [answer[1] for answer in good] == triton["scores"]["log_likelihood"]
    assert [answer[2] for answer in good] == [
        {"triton_final_response": True} if i == 3 else {} for i in range(9)
    ]


def test_what_is_not_here_is_refused_with_a_sentence(triton: dict[str, Any]) -> None:
    unimplemented = {name: triton[name] for name in ("sequence", "shared_memory")}
    assert {status for status, _ in unimplemented.values()} == {"StatusCode.UNIMPLEMENTED"}
    off = ["StatusCode.PERMISSION_DENIED", triton["load"][1]]
    assert [triton["load"], triton["unload"]] == [off, off]
    assert off[1].startswith("calls that load and unload models are off here; `glowserve serve --admin on`")
    assert triton["sequence"][1].startswith("parameter 'sequence_")
    assert triton["shared_memory"][1].startswith("parameter 'shared_memory_")
    assert triton["unknown"] == [
        "StatusCode.NOT_FOUND",
        "the model 'nobody' is not served; served are digits, digits.sample",
    ]


def test_the_statistics_count_what_the_models_did(triton: dict[str, Any], images: UInt8Array) -> None:
    scorer, sampler = triton["statistics"]
    requests, count = 2 + len(images), 3 * len(images)
    stats = scorer["inference_stats"]
    assert stats.pop("fail") == {}
    assert stats.keys() == {"success", "queue", "compute_input", "compute_infer", "compute_output"}
    assert (scorer["name"], scorer["version"]) == ("digits", "1")
    assert int(scorer["inference_count"]) == count
    assert {int(stats[name]["count"]) for name in stats} == {requests}
    assert int(stats["success"]["ns"]) >= int(stats["compute_infer"]["ns"]) > 0
    assert abs(int(scorer["last_inference"]) / 1000 - time.time()) < 600
    batches = [
        (int(entry["batch_size"]), int(entry["compute_infer"]["count"])) for entry in scorer["batch_stats"]
    ]
    assert sum(size * number for size, number in batches) == count
    assert sum(number for _, number in batches) == int(scorer["execution_count"])
    assert sampler["name"] == "digits.sample"
    assert (int(sampler["inference_count"]), int(sampler["execution_count"])) == (3, 1)
    assert [(entry["batch_size"], entry["compute_infer"]["count"]) for entry in sampler["batch_stats"]] == [
        ("3", "1")
    ]


def test_the_example_in_the_docs_runs(fresh: Server, triton: dict[str, Any], tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "open-inference-protocol.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    (tmp_path / "example.py").write_text(example.replace("localhost:8001", f"127.0.0.1:{fresh.port}"))
    ended = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    first, *rest = ended.stdout.splitlines()
    assert first == "(4, 8, 8, 1) uint8"
    assert len(rest) == 4
    assert all(line.endswith(" bits/dim") for line in rest)


# What Triton's client never sends


def test_typed_contents_say_the_same_as_raw_bytes(stub: GRPCInferenceServiceStub, images: UInt8Array) -> None:
    typed = image_request(images)
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.uint_contents.extend(images.ravel().tolist())
    assert stub.ModelInfer(typed) == stub.ModelInfer(image_request(images))
    typed, raw = sample_request([3, 4], [0.5, 0.25]), sample_request([3, 4], [0.5, 0.25])
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.uint64_contents.extend([3, 4])
    typed.inputs[1].contents.fp32_contents.extend([0.5, 0.25])
    assert stub.ModelInfer(typed) == stub.ModelInfer(raw)


def test_a_seed_may_be_unsigned_and_unknown_parameters_are_ignored(
    stub: GRPCInferenceServiceStub, ours: glowserve.Client, images: UInt8Array
) -> None:
    request = image_request(images, id="x", parameters={"seed": pb.InferParameter(uint64_param=2**64 - 1)})
    request.parameters["priority"].uint64_param = 2
    request.inputs[0].parameters["colour"].string_param = "blue"
    response = stub.ModelInfer(request)
    expected = ours.score(images, seed=2**64 - 1).log_likelihood
    assert output(response, "log_likelihood").tolist() == expected.tolist()
    assert not response.parameters


def test_a_request_may_hold_more_images_than_a_batch(
    stub: GRPCInferenceServiceStub, ours: glowserve.Client, digits: UInt8Array
) -> None:
    response = stub.ModelInfer(image_request(digits))
    assert output(response, "bits_per_dim").tolist() == ours.score(digits).bits_per_dim.tolist()


def change(**fields: Any) -> Callable[[pb.ModelInferRequest], None]:
    """Sets fields of the first input."""

    def apply(request: pb.ModelInferRequest) -> None:
        for name, value in fields.items():
            if isinstance(value, list):
                del getattr(request.inputs[0], name)[:]
                getattr(request.inputs[0], name).extend(value)
            else:
                setattr(request.inputs[0], name, value)

    return apply


def typed(*values: int) -> Callable[[pb.ModelInferRequest], None]:
    def apply(request: pb.ModelInferRequest) -> None:
        del request.raw_input_contents[:]
        request.inputs[0].contents.uint_contents.extend(values)

    return apply


def parameter(**value: Any) -> Callable[[pb.ModelInferRequest], None]:
    return lambda request: request.parameters["seed"].MergeFrom(pb.InferParameter(**value))


WRONG: dict[str, tuple[Callable[[pb.ModelInferRequest], Any], str]] = {
    "version": (
        lambda request: setattr(request, "model_version", "new"),
        "the model's version is 'new'; it must be a number, or empty for the newest",
    ),
    "no inputs": (
        lambda request: request.ClearField("inputs"),
        "inputs are none; this model takes image, each once",
    ),
    "input": (change(name="picture"), "inputs are picture; this model takes image, each once"),
    "twice": (
        lambda request: request.inputs.append(request.inputs[0]),
        "inputs are image, image; this model takes image, each once",
    ),
    "datatype": (change(datatype="FP32"), "input 'image': datatype is 'FP32'; it must be 'UINT8'"),
    "rank": (change(shape=[128]), "input 'image': shape is [128]; this model takes [N, 8, 8, 1]"),
    "channels first": (
        change(shape=[2, 1, 8, 8]),
        "input 'image': shape is [2, 1, 8, 8]; this model takes [N, 8, 8, 1]",
    ),
    "none": (
        change(shape=[0, 8, 8, 1]),
        "input 'image': shape is [0, 8, 8, 1]; a request takes 1 to 256 rows",
    ),
    "negative": (
        change(shape=[-1, 8, 8, 1]),
        "input 'image': shape is [-1, 8, 8, 1]; a request takes 1 to 256 rows",
    ),
    "too many": (
        change(shape=[257, 8, 8, 1]),
        "input 'image': shape is [257, 8, 8, 1]; a request takes 1 to 256 rows",
    ),
    "bytes": (
        change(shape=[3, 8, 8, 1]),
        "input 'image': raw_input_contents has 128 bytes; shape [3, 8, 8, 1] takes 192",
    ),
    "raw inputs": (
        lambda request: request.raw_input_contents.append(b""),
        "raw_input_contents has 2 values and there are 1 inputs; it takes one for each, or none",
    ),
    "both": (
        lambda request: request.inputs[0].contents.uint_contents.append(1),
        "input 'image': it has contents, and raw_input_contents too; set one of them",
    ),
    "no values": (
        lambda request: request.ClearField("raw_input_contents"),
        "input 'image': contents.uint_contents has 0 values; shape [2, 8, 8, 1] takes 128, there or as bytes in "
        "raw_input_contents",
    ),
    "value": (typed(*127 * [0], 256), "input 'image': contents.uint_contents has a 256; the most is 255"),
    "output": (
        lambda request: request.outputs.add(name="latent"),
        "output 'latent' is not one of this model's, log_likelihood, bits_per_dim, percentile",
    ),
    "text as seed": (
        parameter(string_param="1"),
        "parameter 'seed' has string_param; it must have int64_param or uint64_param",
    ),
    "negative seed": (parameter(int64_param=-1), "parameter 'seed' is -1; it must be 0 or more"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_malformed_request_is_told_what_is_wrong(
    stub: GRPCInferenceServiceStub, images: UInt8Array, case: str
) -> None:
    spoil, message = WRONG[case]
    request = image_request(images[:2], id="7")
    spoil(request)
    assert refusal(lambda: stub.ModelInfer(request)) == (grpc.StatusCode.INVALID_ARGUMENT, message)
    (answer,) = stub.ModelStreamInfer(iter([request]))
    assert (answer.error_message, answer.infer_response) == (message, pb.ModelInferResponse(id="7"))


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (
            sample_request([1, 2], [0.5]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "inputs have 2 rows of seed, 1 rows of temperature; they must have the same number",
        ),
        (
            sample_request([1], [-1]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "temperature is -1.0; it must be 0 or more, and finite",
        ),
        (
            sample_request([1, 1], [0.0, 3e38]),
            grpc.StatusCode.FAILED_PRECONDITION,
            "input 'temperature': row 1 does not decode to a finite image",
        ),
    ],
)
def test_a_sample_that_cannot_be_drawn_is_refused(
    stub: GRPCInferenceServiceStub, request_: pb.ModelInferRequest, code: grpc.StatusCode, message: str
) -> None:
    assert refusal(lambda: stub.ModelInfer(request_)) == (code, message)


@pytest.mark.parametrize("name", ["classification", "binary_data", "shared_memory_region"])
def test_outputs_in_ways_that_are_not_here_are_refused(
    stub: GRPCInferenceServiceStub, images: UInt8Array, name: str
) -> None:
    request = image_request(images[:1])
    request.outputs.add(name="percentile").parameters[name].int64_param = 1
    code, message = refusal(lambda: stub.ModelInfer(request))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert message.startswith(f"parameter '{name}' is not supported")


def test_models_and_versions_that_are_not_served_are_not_found(
    stub: GRPCInferenceServiceStub, images: UInt8Array
) -> None:
    calls: dict[str, Callable[[str, str], Any]] = {
        "ModelMetadata": lambda name, version: stub.ModelMetadata(
            pb.ModelMetadataRequest(name=name, version=version)
        ),
        "ModelConfig": lambda name, version: stub.ModelConfig(
            pb.ModelConfigRequest(name=name, version=version)
        ),
        "ModelStatistics": lambda name, version: stub.ModelStatistics(
            pb.ModelStatisticsRequest(name=name, version=version)
        ),
    }
    for name, version in (
        ("nobody", ""),
        ("digits.sample.sample", ""),
        ("digits", "2"),
        ("digits.sample", "2"),
    ):
        for call in calls.values():
            assert refusal(lambda call=call, name=name, version=version: call(name, version))[0] is (
                grpc.StatusCode.NOT_FOUND
            )
    assert stub.ModelMetadata(pb.ModelMetadataRequest(name="digits", version="1")).versions == ["1"]
    assert refusal(lambda: stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="other"))) == (
        grpc.StatusCode.UNIMPLEMENTED,
        "repository_name is 'other'; there is one repository, leave it empty",
    )


def test_bytes_that_are_no_message_end_the_stream_and_are_counted(fresh: Server, images: UInt8Array) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{fresh.port}") as channel:
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        answers = call(iter([b"\xff"]))
        code, message = refusal(lambda: next(answers))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message.startswith("the message is not one that ModelStreamInfer takes")
    labels = {"method": "ModelStreamInfer", "model": "", "code": "INVALID_ARGUMENT"}
    assert fresh.metrics.registry.get_sample_value("glowserve_requests_total", labels) == 1


def test_health_knows_this_service_too(fresh: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{fresh.port}") as channel:
        request = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
        answer = health_pb2_grpc.HealthStub(channel).Check(request)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_the_requests_of_a_stream_keep_each_other_company(run_server: RunServer, digits: UInt8Array) -> None:
    """None of them would be answered within the test, were they run one after the other."""
    with (
        run_server(max_batch_size=16, max_queue_delay_ms=100_000) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        requests = [image_request(digits[i : i + 1], id=str(i)) for i in range(160)]
        answers = list(stub.ModelStreamInfer(iter(requests), timeout=60))
        assert [answer.infer_response.id for answer in answers] == [request.id for request in requests]
        (statistics,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name="digits")).model_stats
    assert (statistics.inference_count, statistics.execution_count) == (160, 10)
    assert [entry.batch_size for entry in statistics.batch_stats] == [16]
    stats = statistics.inference_stats
    assert (stats.success.count, stats.queue.count, stats.compute_infer.count) == (160, 160, 160)
    assert stats.compute_infer.ns == pytest.approx(16 * statistics.batch_stats[0].compute_infer.ns)


@pytest.mark.parametrize(("size", "most"), [(1, 64), (20, 80)])
def test_no_more_images_of_a_stream_are_under_way_than_a_call_may_bring(
    run_server: RunServer, digits: UInt8Array, size: int, most: int
) -> None:
    """Or one request over it."""
    with (
        run_server(max_images_per_call=64, max_queue_delay_ms=100_000, max_batch_size=1000) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        requests = itertools.repeat(image_request(digits[:size]))
        stream = GRPCInferenceServiceStub(channel).ModelStreamInfer(requests)
        labels = {"model": "digits", "direction": "forward"}

        def queued() -> float | None:
            return server.metrics.registry.get_sample_value("glowserve_queue_length", labels)

        wait_for(lambda: queued() == most)
        time.sleep(0.5)
        assert queued() == most
        stream.cancel()


def test_who_reads_no_answers_cannot_fill_the_memory_with_requests(
    server: Server, digits: UInt8Array
) -> None:
    taken = 0

    def requests() -> Iterator[pb.ModelInferRequest]:
        nonlocal taken
        while True:
            taken += 1
            yield image_request(digits[:64])

    with grpc.insecure_channel(f"127.0.0.1:{server.port}", SMALL_WINDOW) as channel:
        stream = GRPCInferenceServiceStub(channel).ModelStreamInfer(requests())
        next(stream)
        before = 0
        while taken != before:
            before = taken
            time.sleep(1)
        assert taken * 64 * 64 < 2 * 2**20
        stream.cancel()


def test_requests_that_are_refused_or_given_up_are_counted_as_failed(
    run_server: RunServer, digits: UInt8Array
) -> None:
    with (
        run_server(max_queue_size=64, max_images_per_call=64, max_queue_delay_ms=100_000) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        stream = stub.ModelStreamInfer(iter([image_request(digits[:20])]))
        waiting = {"model": "digits", "direction": "forward"}
        queue = "glowserve_queue_length"
        wait_for(lambda: server.metrics.registry.get_sample_value(queue, waiting) == 20)
        code, _ = refusal(lambda: stub.ModelInfer(image_request(digits[:64])))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        stream.cancel()
        wait_for(lambda: server.metrics.registry.get_sample_value(queue, waiting) == 0)
        wait_for(lambda: in_flight(server) == 0)
        statistics = stub.ModelStatistics(pb.ModelStatisticsRequest(name="digits", version="1")).model_stats[
            0
        ]
    assert statistics.inference_stats.fail.count == 2
    assert statistics.inference_stats.success.count == statistics.execution_count == 0


def test_a_request_over_the_size_limit_is_refused(run_server: RunServer) -> None:
    with (
        run_server(max_message_mib=1) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        request = pb.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(2**20)])
        code, _ = refusal(lambda: GRPCInferenceServiceStub(channel).ModelInfer(request))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_bundle_goes_before_a_sampler_of_the_same_name(
    run_server: RunServer, repository: Path, tmp_path: Path
) -> None:
    for name in ("digits", "digits.sample"):
        shutil.copytree(repository / "digits", tmp_path / name)
    with (
        run_server(repository=tmp_path) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        index = stub.RepositoryIndex(pb.RepositoryIndexRequest())
        assert [entry.name for entry in index.models] == ["digits", "digits.sample", "digits.sample.sample"]
        metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="digits.sample"))
        assert [tensor.name for tensor in metadata.inputs] == ["image"]


# Starting and stopping


def test_a_server_that_loads_is_live_and_not_ready(
    repository: Path, tmp_path: Path, images: UInt8Array
) -> None:
    """One graph is a pipe, and loading waits for what comes out of it."""
    source, bundle = repository / "digits" / "1", tmp_path / "digits" / "1"
    shutil.copytree(source, bundle)
    pipe = bundle / "reverse.onnx"
    pipe.unlink()
    os.mkfifo(pipe)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "glowserve", "serve", "--repository", str(tmp_path)]
    command += ["--port", str(port), "--metrics-port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = GRPCInferenceServiceStub(channel)
                assert stub.ServerLive(pb.ServerLiveRequest(), wait_for_ready=True, timeout=60).live
                assert not stub.ServerReady(pb.ServerReadyRequest()).ready
                assert not stub.ModelReady(pb.ModelReadyRequest(name="digits")).ready
                for call in (
                    lambda: stub.ModelInfer(image_request(images)),
                    lambda: next(stub.ModelStreamInfer(iter([image_request(images)]))),
                    lambda: stub.ServerMetadata(pb.ServerMetadataRequest()),
                ):
                    code, message = refusal(call)
                    assert (code, message) == (
                        grpc.StatusCode.UNAVAILABLE,
                        "the server is starting; try again",
                    )
                pipe.write_bytes((source / "reverse.onnx").read_bytes())
                wait_for(lambda: stub.ServerReady(pb.ServerReadyRequest()).ready)
                assert stub.ModelReady(pb.ModelReadyRequest(name="digits")).ready
                assert output(stub.ModelInfer(image_request(images)), "percentile").shape == (9,)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_an_open_stream_is_answered_and_does_not_hold_up_the_end(
    start_server: StartServer, images: UInt8Array
) -> None:
    def requests() -> Iterator[pb.ModelInferRequest]:
        yield image_request(images, id="accepted")
        yield from iter(lambda: time.sleep(0.05) or image_request(images, id="late"), None)

    with (
        start_server("--drain-seconds", "600", "--max-queue-delay-ms", "1500", "--max-batch-size", "64") as (
            process,
            target,
            _,
        ),
        grpc.insecure_channel(target) as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        answers = stub.ModelStreamInfer(requests())
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        received = []
        code, message = refusal(lambda: received.extend(answers))
        _, errors = process.communicate(timeout=60)
    assert (code, message) == (grpc.StatusCode.UNAVAILABLE, "the server is stopping; try another")
    assert received[0].infer_response.id == "accepted"
    assert {answer.error_message for answer in received} == {""}
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert "Task" not in errors
