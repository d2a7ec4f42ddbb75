"""Which model answers, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest

from glowserve.images import UInt8Array
from glowserve.runtime.errors import BundleError
from glowserve.runtime.repository import Bundle
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.wire import (
    copied,
    latent_tensor,
    raw,
    refusal,
)

RunServer = Callable[..., Any]

Float32Array = npt.NDArray[np.float32]


def test_the_model_is_listed_and_described(stub: GlowServiceStub, bundle: Bundle) -> None:
    (summary,) = stub.ListModels(pb.ListModelsRequest()).models
    assert (summary.model.name, summary.model.version) == ("digits", 1)
    assert summary.image == bundle.manifest.image
    for spec in (None, pb.ModelSpec(name="digits"), pb.ModelSpec(version=1)):
        assert stub.GetModel(pb.GetModelRequest(model=spec)).manifest == bundle.manifest


@pytest.fixture(scope="module")
def two_models(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two_models")
    copied(repository / "digits" / "1", path / "digits" / "2", version="2")
    copied(repository / "digits" / "1", path / "digits" / "10", version="10")
    copied(repository / "digits" / "1", path / "other" / "1", model="other")
    return path


def test_with_two_models_the_name_says_which(
    run_server: Callable[..., Any], two_models: Path, digits: UInt8Array
) -> None:
    with (
        run_server(repository=two_models) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = GlowServiceStub(channel)
        listed = [
            (entry.model.name, entry.model.version)
            for entry in stub.ListModels(pb.ListModelsRequest()).models
        ]
        assert listed == [("digits", 10), ("other", 1)]
        tensor = latent_tensor(np.zeros((1, 64), np.float32))
        calls: dict[str, Callable[[pb.ModelSpec | None], Any]] = {
            "Score": lambda spec: stub.Score(pb.ScoreRequest(model=spec, images=raw(digits[:2]))),
            "Sample": lambda spec: next(stub.Sample(pb.SampleRequest(model=spec, n=1, temperature=0))),
            "Encode": lambda spec: stub.Encode(pb.EncodeRequest(model=spec, images=raw(digits[:2]))),
            "Decode": lambda spec: stub.Decode(pb.DecodeRequest(model=spec, latents=tensor)),
            "GetModel": lambda spec: stub.GetModel(pb.GetModelRequest(model=spec)).manifest,
        }
        for name, call in calls.items():
            for spec in (None, pb.ModelSpec(), pb.ModelSpec(version=1)):
                code, message = refusal(lambda call=call, spec=spec: call(spec))
                assert code is grpc.StatusCode.INVALID_ARGUMENT, name
                assert "model.name is empty" in message
                assert "digits version 10" in message
                assert "other version 1" in message
            for model, version in listed:
                for asked in (0, version):
                    answer = call(pb.ModelSpec(name=model, version=asked))
                    said = answer if name == "GetModel" else answer.model
                    assert (getattr(said, "model" if name == "GetModel" else "name"), said.version) == (
                        model,
                        version,
                    )
            code, message = refusal(lambda call=call: call(pb.ModelSpec(name="digits", version=2)))
            assert code is grpc.StatusCode.NOT_FOUND, name
            assert "model.version 2 of 'digits'" in message


def test_a_manifest_of_another_shape_than_its_graphs_is_refused(
    repository: Path, tmp_path: Path, run_server: RunServer
) -> None:
    image = {"height": 4, "width": 8, "channels": 1, "n_bits": 4, "latent_size": 32}
    copied(repository / "digits" / "1", tmp_path / "digits" / "1", image=image)
    with pytest.raises(BundleError, match="not what the manifest says"), run_server(repository=tmp_path):
        pass
