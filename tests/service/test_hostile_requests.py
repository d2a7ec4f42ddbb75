"""Texts and bytes of a request do not reach the file system, and errors say nothing about the server's inside."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import glowserve
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.servers import RunServer

PATHS = [
    "../../../etc/passwd",
    "/etc/passwd",
    "digits/1/manifest.json",
    "digits\x00",
    "..",
    "~",
    "file:///etc/passwd",
]


def requests_with(text: str) -> list[tuple[str, Any]]:
    """Requests that have this text in every field for a text, and for bytes that could be read as one."""
    spec, images = pb.ModelSpec(name=text), pb.Images(encoded=pb.EncodedImages(data=[text.encode()]))
    return [
        ("Score", pb.ScoreRequest(model=spec, images=images)),
        ("Score", pb.ScoreRequest(images=images)),
        ("Explain", pb.ExplainRequest(model=spec, images=images)),
        ("Encode", pb.EncodeRequest(model=spec, images=images)),
        ("Sample", pb.SampleRequest(model=spec, n=1)),
        ("Decode", pb.DecodeRequest(model=spec)),
        ("Interpolate", pb.InterpolateRequest(model=spec, images=images, steps=2)),
        ("Manipulate", pb.ManipulateRequest(model=spec, images=images, attributes=[text], strengths=[1])),
        ("GetModel", pb.GetModelRequest(model=spec)),
        ("ModelReady", oip.ModelReadyRequest(name=text, version=text)),
        ("ModelMetadata", oip.ModelMetadataRequest(name=text, version=text)),
        ("ModelConfig", oip.ModelConfigRequest(name=text, version=text)),
        ("ModelStatistics", oip.ModelStatisticsRequest(name=text, version=text)),
        ("ModelInfer", oip.ModelInferRequest(model_name=text, model_version=text)),
        ("RepositoryIndex", oip.RepositoryIndexRequest(repository_name=text)),
        ("RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name=text)),
        ("RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name=text)),
    ]


def outcome(channel: grpc.Channel, method: str, request: Any) -> tuple[grpc.StatusCode, str]:
    """The status and message of a call."""
    stub = GlowServiceStub(channel) if hasattr(pb, f"{method}Request") else GRPCInferenceServiceStub(channel)
    try:
        response = getattr(stub, method)(request, timeout=60)
        list(response) if hasattr(response, "__next__") else response
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


class FileAccess:
    """Records the paths that this process opens or lists."""

    def __init__(self) -> None:
        self._recording = False
        self._paths: list[str] = []
        sys.addaudithook(self._on_event)  # it cannot be removed

    @contextmanager
    def record(self) -> Iterator[list[str]]:
        self._paths, self._recording = [], True
        try:
            yield self._paths
        finally:
            self._recording = False

    def _on_event(self, event: str, args: tuple[Any, ...]) -> None:
        events = ("open", "os.listdir", "os.scandir", "os.chdir", "glob.glob", "shutil.copyfile")
        if self._recording and event in events:
            self._paths.append(f"{event} {args[0]!r}")


@pytest.fixture(scope="module")
def file_access() -> FileAccess:
    return FileAccess()


def test_no_text_of_a_request_reaches_the_file_system(
    run_server: RunServer, file_access: FileAccess, repository: Path
) -> None:
    # What servers in this process do now and then: polls, counts of descriptors, starts of decoders.
    folders = (repository, repository / "digits", Path("/dev/fd"))
    usual = {f"open {os.devnull!r}", *(f"os.listdir {str(folder)!r}" for folder in folders)}
    with (
        run_server(poll_seconds=0) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        for method, request in requests_with("x"):  # modules are imported with the first call
            outcome(channel, method, request)
        with file_access.record() as paths:
            for text in PATHS:
                for method, request in requests_with(text):
                    outcome(channel, method, request)
            assert set(paths) <= usual
            Path(__file__).read_bytes()
            assert set(paths) - usual == {f"open {__file__!r}"}  # the hook works


def test_messages_of_errors_show_no_paths_types_or_tracebacks(
    channel: grpc.Channel, repository: Path
) -> None:
    random = np.random.default_rng(0)
    messages = []
    for text in PATHS:
        outcomes = [outcome(channel, method, request) for method, request in requests_with(text)]
        assert not {code for code, _ in outcomes} & {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
        messages += [message for _, message in outcomes]
    for method in ("Score", "Explain", "Encode", "Decode", "GetModel"):
        call = channel.unary_unary(f"/glowserve.v1.GlowService/{method}")
        for size in (1, 10, 100, 1000) * 5:
            with pytest.raises(grpc.RpcError) as caught:
                call(random.bytes(size), timeout=60)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            messages.append(caught.value.details())
    package = str(Path(glowserve.__file__).parents[1])
    assert sum(map(bool, messages)) > 100
    inside = ("Traceback", ".py", "site-packages", "object at 0x", "Error(", package, str(repository))
    for message in messages:
        assert not [words for words in inside if words in message]
