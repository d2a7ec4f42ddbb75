"""The clients' channels: which calls are retried, and which settings are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import glowserve
from glowserve.client.transports.channel import ChannelSettings, check_transport, sample_timeout
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import glow_service_pb2_grpc
from tests.client.blocking import Connect
from tests.client.serving import after_a_failed_connection, serve


class Refusing(glow_service_pb2_grpc.GlowServiceServicer):
    """Refuses the first calls with a status code, and answers later ones.

    Args:
        code: the status code.
        times: how many calls are refused.
    """

    def __init__(self, code: grpc.StatusCode, times: int) -> None:
        self.code = code
        self.left = times
        self.calls = 0

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        self._refuse(context)
        return pb.ListModelsResponse()

    def Sample(self, request: Any, context: grpc.ServicerContext) -> Iterator[pb.SampleResponse]:
        self._refuse(context)
        tensor = {"dtype": 1, "shape": [1, 1, 1, 1], "data": b"\7"}
        yield pb.SampleResponse(images=pb.Images(tensor=tensor))

    def _refuse(self, context: grpc.ServicerContext) -> None:
        self.calls += 1
        if self.left:
            self.left -= 1
            context.abort(self.code, "not now")


@pytest.mark.parametrize(("method", "times"), [("models", 4), ("sample", 1)])
def test_an_unavailable_call_is_retried(connect: Connect, method: str, times: int) -> None:
    servicer = Refusing(grpc.StatusCode.UNAVAILABLE, times)
    with serve(servicer) as target, connect(target) as client:
        getattr(client, method)()
    assert servicer.calls == times + 1


@pytest.mark.parametrize(
    ("code", "calls"),
    [("UNAVAILABLE", 5), ("INVALID_ARGUMENT", 1), ("RESOURCE_EXHAUSTED", 1), ("INTERNAL", 1)],
)
def test_only_unavailable_is_retried_and_four_times_at_most(connect: Connect, code: str, calls: int) -> None:
    servicer = Refusing(grpc.StatusCode[code], 100)
    with (
        serve(servicer) as target,
        connect(target) as client,
        pytest.raises(glowserve.RequestError, match=f"{code}: not now"),
    ):
        client.models()
    assert servicer.calls == calls


def test_a_service_that_is_not_there_is_unavailable(connect: Connect) -> None:
    with connect("127.0.0.1:1") as client, pytest.raises(glowserve.RequestError) as caught:
        client.models()
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "")


def test_a_call_reaches_a_service_after_a_failed_connection(connect: Connect) -> None:
    servicer = Refusing(grpc.StatusCode.OK, 0)
    with (
        serve(servicer) as target,
        after_a_failed_connection(target) as late,
        connect(late) as client,
    ):
        assert client.models() == []
    assert servicer.calls == 1


def test_the_timeout_of_a_stream_grows_with_its_samples() -> None:
    assert sample_timeout(60, 1) == 61
    assert sample_timeout(0.5, 100_000) == 100_000.5


def test_a_client_has_either_a_target_or_a_transport() -> None:
    check_transport(ChannelSettings(target="localhost:1", token="t"), None)
    check_transport(ChannelSettings(target=""), object())
    with pytest.raises(ValueError, match="target is ''; pass HOST:PORT of a service, or a transport"):
        glowserve.Client()


@pytest.mark.parametrize(
    "settings", [{"target": "localhost:1"}, {"timeout": 5}, {"tls": True}, {"token": "t"}]
)
def test_a_transport_excludes_a_target_and_its_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="with a transport, leave out the target and all of its settings"):
        glowserve.Client(transport=object(), **settings)


def test_a_token_is_not_printed() -> None:
    assert "secret" not in repr(ChannelSettings(target="localhost:1", token="secret"))


@pytest.mark.parametrize("kind", [glowserve.Client, glowserve.AsyncClient])
async def test_unusable_credentials_are_refused_when_a_client_is_made(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.pem cannot be read: No such file"):
        kind("localhost:1", ca=tmp_path / "nowhere.pem")
    with pytest.raises(ValueError, match=r"the token would travel to example\.com:1 unencrypted"):
        kind("example.com:1", token="t")
