"""The table of scores is what the contract, the results, the Open Inference Protocol and the docs have."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import grpc
import numpy as np
from glowserve_service.server import Server
from google.protobuf.descriptor import FieldDescriptor

from glowserve.oip import grpc_service_pb2, grpc_service_pb2_grpc
from glowserve.runtime.repository import Bundle
from glowserve.scores import COLUMNS, TABLE, Needs, Scores
from glowserve.v1 import glow_service_pb2 as pb

DOCS = Path(__file__).parents[3] / "docs" / "scores.md"


def test_every_score_is_a_field_of_the_message_and_every_field_a_score() -> None:
    kinds = {np.float64: FieldDescriptor.TYPE_DOUBLE, np.bool_: FieldDescriptor.TYPE_BOOL}
    described = pb.ImageScore.DESCRIPTOR.fields_by_name
    assert {name: (each.type, each.is_repeated) for name, each in described.items()} == {
        name: (kinds[score.dtype], score.by is not None) for name, score in TABLE.items()
    }


def test_a_score_that_may_be_left_out_has_presence_and_so_has_the_percentile() -> None:
    for name, score in TABLE.items():
        field = pb.ImageScore.DESCRIPTOR.fields_by_name[name]
        assert field.has_presence == (score.by is None and (not score.default or name == "percentile"))


def test_every_score_is_an_attribute_of_the_results() -> None:
    about_all = {"model", "version", "seed", "false_alarm_rate"}
    assert {each.name for each in fields(Scores)} == {*TABLE, *about_all}


def test_the_scores_of_every_answer_come_first() -> None:
    assert list(COLUMNS) == list(TABLE)[:4] == ["log_likelihood", "bits_per_dim", "percentile", "finite"]


def test_a_score_is_calibrated_if_it_needs_a_calibration_or_is_the_percentile() -> None:
    for name, score in TABLE.items():
        assert score.calibrated == (Needs.CALIBRATION in score.needs or name == "percentile")


def test_every_score_of_one_draw_is_an_output_of_the_open_inference_protocol(
    server: Server, bundle: Bundle
) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        metadata = stub.ModelMetadata(grpc_service_pb2.ModelMetadataRequest(name="digits"))
    found = {each.name: (each.datatype, list(each.shape)) for each in metadata.outputs}
    assert found == {
        name: (
            "BOOL" if score.dtype is np.bool_ else "FP64",
            [-1, bundle.manifest.flow.levels] if score.by == "level" else [-1],
        )
        for name, score in TABLE.items()
        if not score.needs & (Needs.DRAWS | Needs.CLASSES)  # the model has no classes
    }


def test_the_docs_have_a_row_for_every_score() -> None:
    text = DOCS.read_text()
    for name, score in TABLE.items():
        assert f"| `{name}`" in text
        assert score.meaning in text
