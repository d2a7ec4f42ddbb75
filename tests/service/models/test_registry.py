"""Which model and version a request means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from glowserve.images import UInt8Array
from glowserve.runtime.repository import Bundle
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.servers import RunServer
from tests.service.stubs import connect
from tests.service.wire import copied, latent_tensor, raw, refusal

SERVED = {"digits": 10, "other": 1}
"""The versions of two models that are served, by name."""

Call = Callable[[pb.ModelSpec | None], tuple[str, int]]
"""Calls a method for a model, and returns the name and version in the response."""


@pytest.fixture(scope="module")
def calls(
    repository: Path, run_server: RunServer, tmp_path_factory: pytest.TempPathFactory, digits: UInt8Array
) -> Iterator[dict[str, Call]]:
    """Calls of each method to a server of two models, of which one has an older version in the repository."""
    path = tmp_path_factory.mktemp("two_models")
    for name, version in (("digits", 2), ("digits", 10), ("other", 1)):
        changes: dict[str, Any] = {"model": name, "version": str(version)}
        copied(repository / "digits" / "1", path / name / str(version), **changes)
    images, latents = raw(digits[:2]), latent_tensor(np.zeros((1, 64), np.float32))

    def answered(response: Any) -> tuple[str, int]:
        return response.model.name, response.model.version

    def described(manifest: Any) -> tuple[str, int]:
        return manifest.model, manifest.version

    with run_server(repository=path) as server, connect(server) as stubs:
        glow = stubs.glow
        yield {
            "Score": lambda spec: answered(glow.Score(pb.ScoreRequest(model=spec, images=images))),
            "Sample": lambda spec: answered(
                next(glow.Sample(pb.SampleRequest(model=spec, n=1, temperature=0)))
            ),
            "Encode": lambda spec: answered(glow.Encode(pb.EncodeRequest(model=spec, images=images))),
            "Decode": lambda spec: answered(glow.Decode(pb.DecodeRequest(model=spec, latents=latents))),
            "GetModel": lambda spec: described(glow.GetModel(pb.GetModelRequest(model=spec)).manifest),
        }


METHODS = pytest.mark.parametrize("method", ["Score", "Sample", "Encode", "Decode", "GetModel"])


@METHODS
def test_the_name_chooses_a_model_and_no_version_means_the_newest(
    calls: dict[str, Call], method: str
) -> None:
    for name, version in SERVED.items():
        for asked in (0, version):
            assert calls[method](pb.ModelSpec(name=name, version=asked)) == (name, version)


@METHODS
@pytest.mark.parametrize(
    "spec", [None, pb.ModelSpec(), pb.ModelSpec(version=1)], ids=["none", "empty", "version"]
)
def test_without_a_name_a_call_to_several_models_is_refused(
    calls: dict[str, Call], method: str, spec: pb.ModelSpec | None
) -> None:
    code, message = refusal(lambda: calls[method](spec))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == ("model.name is empty and there are several models: digits version 10, other version 1")


@METHODS
def test_a_version_that_is_not_served_is_not_found(calls: dict[str, Call], method: str) -> None:
    code, message = refusal(lambda: calls[method](pb.ModelSpec(name="digits", version=2)))
    assert code is grpc.StatusCode.NOT_FOUND
    assert message.startswith("model.version 2 of 'digits' is not served")


def test_the_only_model_needs_no_name(stub: GlowServiceStub, bundle: Bundle) -> None:
    for spec in (None, pb.ModelSpec(name="digits"), pb.ModelSpec(version=1)):
        assert stub.GetModel(pb.GetModelRequest(model=spec)).manifest == bundle.manifest


def test_models_are_listed_with_the_shape_of_their_images(stub: GlowServiceStub, bundle: Bundle) -> None:
    (summary,) = stub.ListModels(pb.ListModelsRequest()).models
    assert (summary.model.name, summary.model.version) == ("digits", 1)
    assert summary.image == bundle.manifest.image
