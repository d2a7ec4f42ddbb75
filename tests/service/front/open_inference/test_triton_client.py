"""Triton's own client calls the service: descriptions, scores, samples, streams, refusals and statistics."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array
from glowserve.scores import TABLE, Needs
from tests.servers import RunServer
from tests.service.stubs import address

PROGRAMS = Path(__file__).parents[2] / "programs"
DOCS = Path(__file__).parents[4] / "docs"


def output_of(program: str, *arguments: str) -> dict[str, Any]:
    """What a program prints."""
    command = [sys.executable, str(PROGRAMS / program), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


@pytest.fixture(scope="module")
def fresh(run_server: RunServer) -> Iterator[Server]:
    """A server that has had no calls before those of `triton`: statistics count them."""
    with run_server() as running:
        yield running


@pytest.fixture(scope="module")
def triton(fresh: Server, images: UInt8Array, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answers to Triton's client."""
    path = tmp_path_factory.mktemp("triton") / "images.npy"
    np.save(path, images)
    return output_of("triton_client.py", address(fresh), str(path))


def test_every_declared_field_is_the_same_in_tritons_client() -> None:
    ours = output_of(
        "describe_messages.py", "glowserve.oip.grpc_service_pb2", "glowserve.oip.model_config_pb2"
    )
    theirs = output_of(
        "describe_messages.py", "tritonclient.grpc.service_pb2", "tritonclient.grpc.model_config_pb2"
    )
    assert len(ours) > 40
    for name, fields in ours.items():
        assert name in theirs
        for field, description in fields.items():
            assert (name, field, theirs[name].get(field)) == (name, field, description)
    assert {"ModelInfer", "ModelStreamInfer"} < ours["inference.GRPCInferenceService"].keys()


def test_the_server_and_its_models_are_ready(triton: dict[str, Any]) -> None:
    assert triton["live"]
    assert triton["ready"]
    assert triton["model_ready"] == [True, True, False, False]
    assert triton["server"]["name"] == "glowserve"
    assert triton["server"]["extensions"] == ["model_repository", "model_configuration", "statistics"]


# Name, type, and the levels of the digits where a score has a value for each.
SCORES = [
    (name, "BOOL" if score.dtype is np.bool_ else "FP64", ["2"] if score.by == "level" else [])
    for name, score in TABLE.items()
    if not score.needs & (Needs.DRAWS | Needs.CLASSES)  # the model has no classes
]


def test_each_model_is_described_as_two(triton: dict[str, Any]) -> None:
    scorer, sampler = triton["metadata"]
    image = {"name": "image", "datatype": "UINT8", "shape": ["-1", "8", "8", "1"]}
    assert scorer == {
        "name": "digits",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [image],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": ["-1", *levels]}
            for name, datatype, levels in SCORES
        ],
    }
    assert sampler["name"] == "digits.sample"
    assert sampler["inputs"] == [
        {"name": "seed", "datatype": "UINT64", "shape": ["-1", "1"]},
        {"name": "temperature", "datatype": "FP32", "shape": ["-1", "1"]},
    ]
    assert sampler["outputs"] == [image, {"name": "finite", "datatype": "BOOL", "shape": ["-1"]}]
    assert triton["index"] == [
        {"name": name, "version": "1", "state": "READY"} for name in ("digits", "digits.sample")
    ]


def test_the_configuration_says_how_much_a_request_may_bring(triton: dict[str, Any], fresh: Server) -> None:
    scorer, sampler = triton["config"]
    assert scorer["max_batch_size"] == sampler["max_batch_size"] == fresh.config.max_images_per_call
    assert scorer["platform"] == "onnxruntime_onnx"
    assert scorer["input"] == [
        {"name": "image", "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": ["8", "8", "1"]}
    ]
    assert [(entry["name"], entry["data_type"]) for entry in scorer["output"]] == [
        (name, f"TYPE_{datatype}") for name, datatype, _ in SCORES
    ]
    assert sampler["input"] == [
        {"name": "seed", "data_type": "TYPE_UINT64", "dims": ["1"]},
        {"name": "temperature", "data_type": "TYPE_FP32", "dims": ["1"]},
    ]
    assert sampler["output"] == [
        {"name": "image", "data_type": "TYPE_UINT8", "dims": ["8", "8", "1"]},
        {"name": "finite", "data_type": "TYPE_BOOL"},
    ]
    assert scorer["dynamic_batching"] == {
        "preferred_batch_size": [fresh.config.max_batch_size],
        "default_queue_policy": {"max_queue_size": fresh.config.max_queue_size},
    }


def test_scores_are_those_of_score_to_the_bit(
    triton: dict[str, Any], client: glowserve.Client, images: UInt8Array
) -> None:
    scores = client.score(images)
    assert triton["scores"] == {
        "log_likelihood": scores.log_likelihood.tolist(),
        "bits_per_dim": scores.bits_per_dim.tolist(),
        "percentile": scores.percentile.tolist(),
    }
    assert triton["dtypes"] == dict.fromkeys(triton["scores"], "float64")
    assert (triton["id"], triton["version"]) == ("first", "1")


def test_a_request_may_choose_outputs_and_a_seed(
    triton: dict[str, Any], client: glowserve.Client, images: UInt8Array
) -> None:
    scores = client.score(images, seed=7)
    assert scores.log_likelihood.tolist() != triton["scores"]["log_likelihood"]
    assert list(triton["subset"].items()) == [
        ("percentile", scores.percentile.tolist()),
        ("log_likelihood", scores.log_likelihood.tolist()),
    ]


def test_samples_are_those_of_sample(triton: dict[str, Any], client: glowserve.Client) -> None:
    assert triton["samples_dtype"] == "uint8"
    rows = [(5, 0.5), (2**64 - 1, 0.7), (5, 0.0)]
    for image, (seed, temperature) in zip(triton["samples"], rows, strict=True):
        assert image == client.sample(1, seed=seed, temperature=temperature).images[0].tolist()


def test_a_stream_answers_in_order_and_goes_on_after_an_error(triton: dict[str, Any]) -> None:
    answers = triton["stream"]
    assert answers[3] == ["error", "input 'image': shape is [9, 4, 8, 1]; this model takes [N, 8, 8, 1]"]
    good = answers[:3] + answers[4:]
    assert [answer[0] for answer in good] == [str(i) for i in range(9)]
    log_likelihoods = [answer[1] for answer in good]
    np.testing.assert_allclose(log_likelihoods, triton["scores"]["log_likelihood"], rtol=1e-6)
    assert [answer[2] for answer in good] == [
        {"triton_final_response": True} if i == 3 else {} for i in range(9)
    ]


def test_what_the_service_does_not_implement_is_refused_with_a_sentence(triton: dict[str, Any]) -> None:
    for name in ("sequence", "shared_memory"):
        status, message = triton[name]
        assert status == "StatusCode.UNIMPLEMENTED"
        assert message.startswith(f"parameter '{name}_")
    for name in ("load", "unload"):
        status, message = triton[name]
        assert status == "StatusCode.PERMISSION_DENIED"
        assert message.startswith(
            "calls that load and unload models are off here; `glowserve serve --admin on`"
        )
    assert triton["unknown"] == [
        "StatusCode.NOT_FOUND",
        "the model 'nobody' is not served; served are digits, digits.sample",
    ]


def test_the_statistics_count_what_the_models_have_done(triton: dict[str, Any], images: UInt8Array) -> None:
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


def test_the_example_of_the_documentation_runs(server: Server, tmp_path: Path) -> None:
    page = (DOCS / "open-inference-protocol.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    (tmp_path / "example.py").write_text(example.replace("localhost:8001", address(server)))
    ended = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    first, *rest = ended.stdout.splitlines()
    assert first == "(4, 8, 8, 1) uint8"
    assert len(rest) == 4
    assert all(line.endswith(" bits/dim") for line in rest)
