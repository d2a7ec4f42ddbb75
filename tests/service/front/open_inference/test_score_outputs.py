"""Scores as outputs of the Open Inference Protocol: those that a request names, and no others are computed."""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import pytest

import glowserve
from glowserve.images import UInt8Array
from glowserve.oip import grpc_service_pb2 as pb
from glowserve.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from glowserve.runtime.repository import Bundle
from tests.servers import RunServer
from tests.service.bundles import without_calibration
from tests.service.front.open_inference.requests import image_request, output
from tests.service.stubs import connect
from tests.service.wire import refusal

Output = pb.ModelInferRequest.InferRequestedOutputTensor


def named(images: UInt8Array, *names: str, rate: float | None = None) -> pb.ModelInferRequest:
    request = image_request(images, outputs=[Output(name=name) for name in names])
    if rate is not None:
        request.parameters["false_alarm_rate"].double_param = rate
    return request


def test_a_request_that_names_nothing_gets_what_it_always_got(
    inference: GRPCInferenceServiceStub, digits: UInt8Array
) -> None:
    response = inference.ModelInfer(image_request(digits[:2]))
    assert [each.name for each in response.outputs] == ["log_likelihood", "bits_per_dim", "percentile"]


def test_named_outputs_are_the_scores_of_the_other_service(
    inference: GRPCInferenceServiceStub, client: glowserve.Client, digits: UInt8Array
) -> None:
    names = ["log_det", "anomalous", "anomaly_p_value", "finite"]
    response = inference.ModelInfer(named(digits[:9], *names, rate=0.25))
    assert [each.name for each in response.outputs] == names
    scores = client.score(digits[:9], scores=["log_det"], false_alarm_rate=0.25).columns()
    for name in ("log_det", "anomalous", "finite"):
        np.testing.assert_allclose(output(response, name), scores[name], rtol=1e-5)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (named(np.zeros((1, 8, 8, 1), np.uint8), "oddness"), "output 'oddness' is not one of this model's"),
        (named(np.zeros((1, 8, 8, 1), np.uint8), "standard_error"), "is not one of this model's"),
        (named(np.zeros((1, 8, 8, 1), np.uint8), "anomalous", rate=0.001), "takes 999 calibration images"),
        (named(np.zeros((1, 8, 8, 1), np.uint8), "anomalous", rate=1.5), "must lie between 0 and 1"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    inference: GRPCInferenceServiceStub, request_: pb.ModelInferRequest, words: str
) -> None:
    code, sentence = refusal(lambda: inference.ModelInfer(request_))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in sentence


def test_a_model_without_a_calibration_does_not_list_p_values_and_says_what_they_take(
    bundle: Bundle, digits: UInt8Array, run_server: RunServer, tmp_path: Path
) -> None:
    without_calibration(bundle.path, tmp_path / "digits" / "1")
    with run_server(repository=tmp_path) as server, connect(server) as stubs:
        metadata = stubs.inference.ModelMetadata(pb.ModelMetadataRequest(name="digits"))
        names = [each.name for each in metadata.outputs]
        assert "complexity_bits_per_dim" in names
        assert not {"anomaly_p_value", "anomalous", "typicality_p_value"} & set(names)
        everything = stubs.inference.ModelInfer(named(digits[:2], *names))
        assert [each.name for each in everything.outputs] == names
        code, sentence = refusal(lambda: stubs.inference.ModelInfer(named(digits[:2], "anomaly_p_value")))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "glowserve calibrate" in sentence
