"""A server starts: ports, hosts and certificates that cannot be used, variables and flags, and calls while it loads."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from glowserve_service.errors import PortError

from glowserve.images import UInt8Array
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.v1 import glow_service_pb2 as pb
from tests.servers import RunServer, StartServer, failed_start, free_port
from tests.service.stubs import NOT_SERVING, SERVING, connect
from tests.service.wire import raw, refusal, wait_for

HANGING_LOADS = Path(__file__).parent / "programs" / "serve_hanging_loads.py"
STARTING = (grpc.StatusCode.UNAVAILABLE, "the server is starting; try again")


def error_of_start(run_server: RunServer, kind: type[Exception], **settings: Any) -> str:
    with pytest.raises(kind) as caught, run_server(**settings):
        pass
    return str(caught.value)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


# A start that fails


def test_a_start_that_fails_ends_the_process_with_a_sentence(repository: Path, taken: int) -> None:
    flags = ("--repository", str(repository), "--port", str(taken), "--metrics-port", "0")
    assert failed_start(*flags) == [f"port {taken} on 127.0.0.1 cannot be listened on; is it in use?"]


def test_a_port_of_another_server_is_in_use(run_server: RunServer) -> None:
    """gRPC by itself would let two servers share a port."""
    with run_server() as server:
        error = error_of_start(run_server, PortError, port=server.port)
    assert error == f"port {server.port} on 127.0.0.1 cannot be listened on; is it in use?"


def test_a_metrics_port_in_use_is_named(run_server: RunServer, taken: int) -> None:
    error = error_of_start(run_server, PortError, metrics_port=taken)
    assert error == f"metrics_port {taken} on 127.0.0.1 cannot be listened on; is it in use?"


def test_a_host_that_does_not_exist_is_named(run_server: RunServer) -> None:
    assert "no-such-host.invalid" in error_of_start(run_server, PortError, host="no-such-host.invalid")


def test_certificates_that_cannot_be_used_are_named(run_server: RunServer, tmp_path: Path) -> None:
    issued, other = (trustme.CA().issue_cert("localhost") for _ in range(2))
    issued.private_key_pem.write_to_path(tmp_path / "key")
    other.cert_chain_pems[0].write_to_path(tmp_path / "other")
    key, missing, certificate = tmp_path / "key", tmp_path / "missing", tmp_path / "other"
    for settings, sentence in (
        ({"tls_cert": missing}, f"certificate {missing} cannot be read: No such file or directory"),
        (
            {"tls_cert": certificate},
            f"key {key} does not belong to certificate {certificate}; give the two of a pair",
        ),
    ):
        assert error_of_start(run_server, ValueError, tls_key=key, **settings) == sentence


def test_settings_that_do_not_fit_each_other_are_refused(run_server: RunServer, tmp_path: Path) -> None:
    pair = "tls_cert and tls_key belong together; give both or neither"
    assert error_of_start(run_server, ValueError, tls_cert=tmp_path) == pair
    assert error_of_start(run_server, ValueError, tls_key=tmp_path) == pair
    authority = "tls_client_ca is of no use without tls_cert"
    assert error_of_start(run_server, ValueError, tls_client_ca=tmp_path).startswith(authority)


# Variables and flags


def test_variables_set_what_flags_leave_open(
    start_server: StartServer, repository: Path, digits: UInt8Array
) -> None:
    variables = {
        "GLOWSERVE_GRPC_PORT": "1",
        "GLOWSERVE_MAX_IMAGES_PER_CALL": "3",
        "GLOWSERVE_MAX_SAMPLES_PER_CALL": "4",
        "GLOWSERVE_INSTANCES": "",  # Compose sets variables without a value so
    }
    port, flags = free_port(), ("--max-samples-per-call", "5")
    with (
        start_server(*flags, "--port", str(port), env=os.environ | variables) as server,
        connect(server.target) as stubs,
    ):
        assert server.target == f"127.0.0.1:{port}"
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", server.metrics_url)
        assert len(stubs.glow.Score(pb.ScoreRequest(images=raw(digits[:3]))).scores) == 3
        assert "1 to 3" in refusal(lambda: stubs.glow.Score(pb.ScoreRequest(images=raw(digits[:4]))))[1]
        assert len(list(stubs.glow.Sample(pb.SampleRequest(n=5, temperature=0)))) == 1
        assert "1 to 5" in refusal(lambda: list(stubs.glow.Sample(pb.SampleRequest(n=6))))[1]


# Loading


def test_a_server_that_is_loading_answers_unavailable_and_then_serves(
    start_server: StartServer, repository: Path, tmp_path: Path, digits: UInt8Array
) -> None:
    """The server loads until the test deletes a file.

    Meanwhile nobody reads the log, which has a line for each call that is refused, more than a pipe holds.
    """
    shutil.copytree(repository / "digits" / "1", tmp_path / "digits" / "1")
    hang = tmp_path / "digits" / "1" / "hang"
    hang.touch()
    score = pb.ScoreRequest(images=raw(digits[:2]))
    infer = oip.ModelInferRequest(model_name="digits")
    with start_server("--repository", str(tmp_path), wait=False, program=[str(HANGING_LOADS)]) as server:
        with connect(server.target) as stubs:
            live = stubs.inference.ServerLive(oip.ServerLiveRequest(), wait_for_ready=True, timeout=60)
            assert live.live
            assert stubs.status() == NOT_SERVING
            assert not stubs.inference.ServerReady(oip.ServerReadyRequest()).ready
            assert not stubs.inference.ModelReady(oip.ModelReadyRequest(name="digits")).ready
            for call in (
                lambda: stubs.inference.ModelInfer(infer),
                lambda: next(stubs.inference.ModelStreamInfer(iter([infer]))),
                lambda: stubs.inference.ServerMetadata(oip.ServerMetadataRequest()),
                *1000 * [lambda: stubs.glow.Score(score)],
            ):
                assert refusal(call) == STARTING
            hang.unlink()
            wait_for(lambda: stubs.status() == SERVING)
            assert stubs.inference.ServerReady(oip.ServerReadyRequest()).ready
            assert stubs.inference.ModelReady(oip.ModelReadyRequest(name="digits")).ready
            assert len(stubs.glow.Score(score).scores) == 2
        log = server.stop()
    assert log.count("UNAVAILABLE") > 100
