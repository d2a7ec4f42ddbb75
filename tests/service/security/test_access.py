"""Which token may call which method, and what the server says about settings that let everybody in."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from glowserve_service.config import ServiceConfig
from glowserve_service.security.access import warning
from grpc import StatusCode
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from glowserve.oip import grpc_service_pb2 as oip
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.servers import RunServer
from tests.service.credentials import ADMIN, INFER, METRICS, TOKENS
from tests.service.log_records import records_of
from tests.service.proxy import proxy
from tests.service.stubs import SERVING, Stubs, connect
from tests.service.wire import refusal

REFUSALS = {StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED}
NO_IMAGES = pb.ScoreRequest()
SAMPLE = pb.SampleRequest(n=1, temperature=0.5)
LOAD = oip.RepositoryModelLoadRequest(model_name="digits")


@pytest.fixture(scope="module")
def stubs(run_server: RunServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stubs]:
    """A server that asks for tokens, and may load models."""
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(TOKENS)
    with run_server(tokens=path, admin="on") as server, connect(server) as stubs:
        yield stubs


def codes(stubs: Stubs, token: str | None) -> dict[str, StatusCode]:
    """The status of a call of each kind."""
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    reflect = reflection_pb2_grpc.ServerReflectionStub(stubs.channel).ServerReflectionInfo
    question = reflection_pb2.ServerReflectionRequest(list_services="")

    def code(method: Any, request: Any) -> StatusCode:
        try:
            response = method(request, metadata=metadata, timeout=60)
            list(response) if hasattr(response, "__next__") else response
        except grpc.RpcError as error:
            return error.code()
        return StatusCode.OK

    glow, inference = stubs.glow, stubs.inference
    return {
        "Score": code(glow.Score, NO_IMAGES),
        "ScoreStream": code(glow.ScoreStream, iter([NO_IMAGES])),
        "ScoreSet": code(glow.ScoreSet, iter([pb.ScoreSetRequest()])),
        "Sample": code(glow.Sample, SAMPLE),
        "Explain": code(glow.Explain, pb.ExplainRequest()),
        "Interpolate": code(glow.Interpolate, pb.InterpolateRequest()),
        "Manipulate": code(glow.Manipulate, pb.ManipulateRequest()),
        "ModelInfer": code(inference.ModelInfer, oip.ModelInferRequest(model_name="digits")),
        "ModelStreamInfer": code(inference.ModelStreamInfer, iter([oip.ModelInferRequest()])),
        "ModelReady": code(inference.ModelReady, oip.ModelReadyRequest(name="digits")),
        "ServerReflectionInfo": code(reflect, iter([question])),
        "RepositoryModelLoad": code(inference.RepositoryModelLoad, LOAD),
    }


def test_every_method_needs_a_token(stubs: Stubs) -> None:
    assert set(codes(stubs, None).values()) == {StatusCode.UNAUTHENTICATED}


def test_a_token_without_the_group_is_refused(stubs: Stubs) -> None:
    assert set(codes(stubs, METRICS).values()) == {StatusCode.PERMISSION_DENIED}


def test_a_token_that_may_infer_may_call_everything_but_what_changes_models(stubs: Stubs) -> None:
    infer, admin = codes(stubs, INFER), codes(stubs, ADMIN)
    assert infer.pop("RepositoryModelLoad") is StatusCode.PERMISSION_DENIED
    assert admin.pop("RepositoryModelLoad") is StatusCode.OK
    assert infer == admin
    assert not set(infer.values()) & REFUSALS
    assert infer["ServerReflectionInfo"] is infer["Sample"] is StatusCode.OK


def test_health_and_readiness_need_no_token(stubs: Stubs) -> None:
    """Orchestrators have none."""
    assert stubs.status() == SERVING
    assert stubs.inference.ServerLive(oip.ServerLiveRequest()).live
    assert stubs.inference.ServerReady(oip.ServerReadyRequest()).ready


def test_every_method_whose_name_says_that_it_changes_something_needs_the_group_admin(stubs: Stubs) -> None:
    """So that a new method does not open a hole."""
    metadata = (("authorization", f"Bearer {INFER}"),)
    methods, denied = set(), set()
    for file in (pb, oip):
        (service,) = file.DESCRIPTOR.services_by_name.values()
        for method in service.methods:
            methods.add(method.name)
            call = stubs.channel.stream_stream(f"/{service.full_name}/{method.name}")
            try:
                list(call(iter([b""]), metadata=metadata, timeout=60))
            except grpc.RpcError as error:
                if error.code() is StatusCode.PERMISSION_DENIED:
                    denied.add(method.name)
    assert denied >= {"LoadModel", "UnloadModel", "RepositoryModelLoad", "RepositoryModelUnload"}
    changing = re.compile("Load|Unload|Reload|^Set|Update|Delete")
    assert denied == {name for name in methods if changing.search(name)}


def test_the_request_of_a_call_without_a_token_is_not_received(run_server: RunServer, tokens: Path) -> None:
    large = pb.ScoreRequest()
    large.images.tensor.data = bytes(32 * 2**20)
    with (
        run_server(tokens=tokens) as server,
        proxy(server.port) as traffic,
        grpc.insecure_channel(f"127.0.0.1:{traffic.port}", [("grpc.max_send_message_length", -1)]) as channel,
    ):
        code, _ = refusal(lambda: GlowServiceStub(channel).Score(large))
        assert code is StatusCode.UNAUTHENTICATED
    assert traffic.bytes < 8 * 2**20


# The warning

TLS = {"tls_cert": Path("cert"), "tls_key": Path("key")}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, {"--tls-cert", "--tokens"}),
        ({"admin": "on"}, {"--tls-cert", "--tokens", "unload models"}),
        (TLS, {"--tokens"}),
        ({"tokens": Path("tokens")}, {"--tls-cert"}),
        (TLS | {"tokens": Path("tokens")}, set()),
        (TLS | {"tls_client_ca": Path("ca")}, set()),
        ({"host": "localhost"}, set()),
        ({"host": "::1"}, set()),
    ],
    ids=["open", "open to admin", "encrypted", "tokens", "both", "mutual", "loopback", "loopback of IPv6"],
)
def test_a_service_that_is_open_to_a_network_is_warned_of_with_the_remedy(
    settings: dict[str, Any], words: set[str]
) -> None:
    sentence = warning(ServiceConfig(**{"repository": Path(), "host": "0.0.0.0"} | settings))
    assert (sentence is None) == (not words)
    for each in ("--tls-cert", "--tokens", "unload models"):
        assert (each in (sentence or "")) == (each in words)


def test_the_warning_is_one_line_of_the_log(run_server: RunServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "glowserve_service.server"), run_server(host="0.0.0.0"):
        lines = [record.message for record in records_of(caplog, "glowserve_service.server")]
    (line,) = lines
    assert line.startswith("0.0.0.0 can be reached from outside this machine, and calls are not encrypted")
