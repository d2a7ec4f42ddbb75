"""The models of the protocol: NAME and NAME.sample for each model, and how their names are found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

import glowserve
from glowserve.images import UInt8Array
from glowserve.oip import grpc_service_pb2 as pb
from glowserve.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.servers import RunServer
from tests.service.front.open_inference.requests import image_request, output, sample_request
from tests.service.stubs import connect
from tests.service.wire import refusal

CALLS: dict[str, Callable[[GRPCInferenceServiceStub, str, str], Any]] = {
    "ModelMetadata": lambda stub, name, version: stub.ModelMetadata(
        pb.ModelMetadataRequest(name=name, version=version)
    ),
    "ModelConfig": lambda stub, name, version: stub.ModelConfig(
        pb.ModelConfigRequest(name=name, version=version)
    ),
    "ModelStatistics": lambda stub, name, version: stub.ModelStatistics(
        pb.ModelStatisticsRequest(name=name, version=version)
    ),
    "ModelInfer": lambda stub, name, version: stub.ModelInfer(
        pb.ModelInferRequest(model_name=name, model_version=version)
    ),
}


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize(
    ("name", "version"),
    [("nobody", ""), ("digits.sample.sample", ""), ("digits", "2"), ("digits.sample", "2")],
)
def test_a_model_or_version_that_is_not_served_is_not_found(
    inference: GRPCInferenceServiceStub, method: str, name: str, version: str
) -> None:
    code, _ = refusal(lambda: CALLS[method](inference, name, version))
    assert code is grpc.StatusCode.NOT_FOUND


def test_a_version_may_be_named(inference: GRPCInferenceServiceStub) -> None:
    metadata = inference.ModelMetadata(pb.ModelMetadataRequest(name="digits", version="1"))
    assert metadata.versions == ["1"]


def test_a_model_takes_the_name_of_a_sampler_if_it_is_called_so(
    run_server: RunServer, repository: Path, tmp_path: Path
) -> None:
    for name in ("digits", "digits.sample"):
        shutil.copytree(repository / "digits", tmp_path / name)
    with run_server(repository=tmp_path) as server, connect(server) as stubs:
        index = stubs.inference.RepositoryIndex(pb.RepositoryIndexRequest())
        assert [entry.name for entry in index.models] == ["digits", "digits.sample", "digits.sample.sample"]
        metadata = stubs.inference.ModelMetadata(pb.ModelMetadataRequest(name="digits.sample"))
        assert [tensor.name for tensor in metadata.inputs] == ["image"]


def test_a_request_may_bring_more_images_than_a_batch(
    inference: GRPCInferenceServiceStub, client: glowserve.Client, digits: UInt8Array
) -> None:
    response = inference.ModelInfer(image_request(digits))
    expected = client.score(digits).bits_per_dim
    assert output(response, "bits_per_dim") == pytest.approx(expected, rel=1e-6)


def test_the_sampler_draws_the_first_sample_of_each_seed(
    inference: GRPCInferenceServiceStub, client: glowserve.Client
) -> None:
    response = inference.ModelInfer(sample_request([3, 9], [0.5, 0.0]))
    first, second = output(response, "image")
    assert first.tolist() == client.sample(1, seed=3, temperature=0.5).images[0].tolist()
    assert second.tolist() == client.sample(1, seed=9, temperature=0.0).images[0].tolist()
