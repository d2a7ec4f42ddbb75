"""Who may call, and what a caller may do: TLS, tokens, limits; on real servers, with certificates made here."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import glowserve_service.server
import grpc
import numpy as np
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from glowserve_service.healthcheck import is_serving
from glowserve_service.observability.metrics_server import MetricsServer
from glowserve_service.server import Server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import glowserve
from glowserve.cli import main
from glowserve.client import requests as calls
from glowserve.images import UInt8Array
from glowserve.oip import grpc_service_pb2
from glowserve.oip import grpc_service_pb2 as oip_pb
from glowserve.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from glowserve.v1 import glow_service_pb2
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub

RunServer = Callable[..., AbstractContextManager[Server]]

INFER = "infer-0123456789-0123456789"
ADMIN = "admin-0123456789-0123456789"
METRICS = "metrics-0123456789-0123456789"
TOKENS = f"""# who may call
app {INFER}
operator {ADMIN} infer,admin

prometheus {METRICS} metrics
"""


class Authority:
    """One that signs certificates, in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._ca, self._folder = trustme.CA(), folder
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def pair(self, name: str, *names: str) -> tuple[Path, Path]:
        """A certificate for these names and its key, written, or written over, as NAME.pem and NAME.key."""
        issued = self._ca.issue_cert(*(names or ("localhost", "127.0.0.1", "::1")))
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return certificate, key


def lines_of(logger: str, caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What a logger logged; asyncio's may have to tell of the servers of other tests, which share its process."""
    return [record for record in caplog.records if record.name == logger]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "stranger")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(TOKENS)
    return path


@contextmanager
def tls_server(run_server: RunServer, authority: Authority, **settings: Any) -> Iterator[Server]:
    cert, key = authority.pair("server")
    with run_server(tls_cert=cert, tls_key=key, **settings) as server:
        yield server


def address(server: Server) -> str:
    return f"127.0.0.1:{server.port}"


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(glowserve.RequestError) as caught:
        call()
    return caught.value.code, caught.value.message


def status(call: Callable[[], Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


def models(server: Server, **credentials: Any) -> list[str]:
    """The models' names, over a connection of its own."""
    with glowserve.Client(address(server), timeout=5, **credentials) as client:
        return [model.name for model in client.models()]


def serial(port: int, authority: Authority) -> str:
    """The serial number of the certificate that a port shows."""
    context = ssl.create_default_context(cafile=authority.file)
    with (
        socket.create_connection(("localhost", port), 5) as connection,
        context.wrap_socket(connection, server_hostname="localhost") as encrypted,
    ):
        shown: Any = encrypted.getpeercert()
        return str(shown["serialNumber"])


def serve_fails(*flags: str) -> str:
    """The one line that `glowserve serve` says before it ends with exit code 2."""
    command = [sys.executable, "-m", "glowserve", "serve", "--port", "0", "--metrics-port", "0", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (2, ""), ended
    (line,) = ended.stderr.splitlines()
    return line.removeprefix("glowserve: ")


# TLS


def test_both_clients_score_and_sample_over_tls(
    run_server: RunServer, authority: Authority, digits: UInt8Array
) -> None:
    async def asynchronously(server: Server) -> tuple[Any, Any]:
        async with glowserve.AsyncClient(address(server), ca=authority.file) as client:
            return await client.score(digits[:4]), await client.sample(4, seed=1, temperature=0.5)

    with tls_server(run_server, authority) as server:
        with glowserve.Client(address(server), ca=authority.file) as client:
            scores, samples = client.score(digits[:4]), client.sample(4, seed=1, temperature=0.5)
        other_scores, other_samples = asyncio.run(asynchronously(server))
    np.testing.assert_array_equal(other_scores.log_likelihood, scores.log_likelihood)
    np.testing.assert_array_equal(other_samples.images, samples.images)
    assert samples.images.shape == (4, 8, 8, 1)


def test_a_tls_port_speaks_to_nobody_in_the_clear_and_a_client_to_no_stranger(
    run_server: RunServer, authority: Authority, stranger: Authority
) -> None:
    with tls_server(run_server, authority) as server:
        assert models(server, ca=authority.file) == ["digits"]
        assert refusal(lambda: models(server))[0] is grpc.StatusCode.UNAVAILABLE
        for credentials in ({"ca": stranger.file}, {"tls": True}):
            code, message = refusal(lambda credentials=credentials: models(server, **credentials))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "CERTIFICATE_VERIFY_FAILED" in message


def test_a_certificate_for_another_host_is_not_trusted(run_server: RunServer, authority: Authority) -> None:
    cert, key = authority.pair("server", "elsewhere.example")
    with run_server(tls_cert=cert, tls_key=key) as server:
        code, _ = refusal(lambda: models(server, ca=authority.file))
        assert code is grpc.StatusCode.UNAVAILABLE


def test_mutual_tls_turns_away_clients_without_a_certificate_of_the_authority(
    run_server: RunServer, authority: Authority, stranger: Authority
) -> None:
    cert, key = authority.pair("client", "client.example")
    other_cert, other_key = stranger.pair("client", "client.example")
    with tls_server(run_server, authority, tls_client_ca=authority.file) as server:
        assert models(server, ca=authority.file, cert=cert, key=key) == ["digits"]
        for credentials in ({}, {"cert": other_cert, "key": other_key}):
            code, _ = refusal(lambda more=credentials: models(server, ca=authority.file, **more))
            assert code is grpc.StatusCode.UNAVAILABLE


def test_a_renewed_certificate_is_shown_to_new_connections_and_old_ones_go_on(
    run_server: RunServer, authority: Authority
) -> None:
    with tls_server(run_server, authority) as server:
        ports = (server.port, server.metrics_port)
        before = [serial(port, authority) for port in ports]
        assert before[0] == before[1]
        with glowserve.Client(address(server), ca=authority.file) as client:
            client.models()
            authority.pair("server")
            after = [serial(port, authority) for port in ports]
            client.models()
        assert after[0] == after[1] != before[0]
        assert models(server, ca=authority.file) == ["digits"]


@pytest.mark.parametrize("damage", ["half renewed", "gone", "no PEM"])
def test_a_renewal_that_went_wrong_is_logged_once_and_the_old_certificate_stays(
    run_server: RunServer, authority: Authority, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with tls_server(run_server, authority) as server:
        before = serial(server.port, authority)
        cert, key = authority.pair("next")
        installed = cert.with_name("server.pem")
        if damage == "half renewed":
            shutil.copy(cert, installed)
        elif damage == "gone":
            installed.unlink()
        else:
            installed.write_text("no certificate")
        with caplog.at_level(logging.INFO, "glowserve_service.security.security"):
            for port in (server.port, server.port, server.metrics_port):
                assert serial(port, authority) == before
            (record,) = lines_of("glowserve_service.security.security", caplog)
            assert record.levelname == "ERROR"
            assert str(installed) in record.getMessage()
            shutil.copy(cert, installed)
            shutil.copy(key, key.with_name("server.key"))
            assert serial(server.port, authority) != before


def test_the_authority_of_clients_is_renewed_too(
    run_server: RunServer, authority: Authority, stranger: Authority
) -> None:
    trusted = authority.file.with_name("clients.pem")
    shutil.copy(authority.file, trusted)
    cert, key = stranger.pair("client", "client.example")
    with tls_server(run_server, authority, tls_client_ca=trusted) as server:
        assert refusal(lambda: models(server, ca=authority.file, cert=cert, key=key))
        shutil.copy(stranger.file, trusted)
        assert models(server, ca=authority.file, cert=cert, key=key) == ["digits"]


# Tokens


def test_a_token_is_needed_where_tokens_are_listed(run_server: RunServer, tokens: Path) -> None:
    with run_server(tokens=tokens) as server:
        assert models(server, token=INFER) == ["digits"]
        code, message = refusal(lambda: models(server))
        assert (code, message) == (
            grpc.StatusCode.UNAUTHENTICATED,
            'a token is needed here: send "authorization: Bearer TOKEN"',
        )
        for wrong in (INFER[:-1], INFER + "0", INFER.upper(), "x"):
            code, message = refusal(lambda wrong=wrong: models(server, token=wrong))
            assert (code, message) == (
                grpc.StatusCode.UNAUTHENTICATED,
                "the token is not one that this service knows",
            )
        assert asyncio.run(_models_from_a_loop(server, INFER)) == ["digits"]
        counted = server.metrics.registry.collect()
        refused = [
            sample.value
            for family in counted
            for sample in family.samples
            if sample.name == "glowserve_requests_total" and sample.labels["code"] == "UNAUTHENTICATED"
        ]
        assert refused == [6]


async def _models_from_a_loop(server: Server, token: str) -> list[str]:
    async with glowserve.AsyncClient(address(server), token=token) as client:
        with pytest.raises(glowserve.RequestError, match="UNAUTHENTICATED"):
            async with glowserve.AsyncClient(address(server), token="wrong") as other:
                await other.models()
        return [model.name for model in await client.models()]


@pytest.mark.parametrize("sent", ["Basic {}", "{}", "Bearer", "Bearer ", "bearer  x{}"])
def test_what_is_not_a_bearer_token_is_none(run_server: RunServer, tokens: Path, sent: str) -> None:
    with run_server(tokens=tokens) as server, grpc.insecure_channel(address(server)) as channel:
        metadata = (("authorization", sent.format(INFER)),)
        call = GlowServiceStub(channel).ListModels
        assert (
            status(lambda: call(pb.ListModelsRequest(), metadata=metadata)) is grpc.StatusCode.UNAUTHENTICATED
        )
        assert call(pb.ListModelsRequest(), metadata=(("authorization", f"bearer {INFER}"),)).models


def test_every_method_but_health_wants_a_token_with_the_right(run_server: RunServer, tokens: Path) -> None:
    load = oip_pb.RepositoryModelLoadRequest(model_name="digits")
    with run_server(tokens=tokens, admin="on") as server, grpc.insecure_channel(address(server)) as channel:
        glow, oip = GlowServiceStub(channel), GRPCInferenceServiceStub(channel)
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo

        def every(token: str | None) -> dict[str, grpc.StatusCode]:
            metadata = () if token is None else (("authorization", f"Bearer {token}"),)

            def ask(method: Any, request: Any) -> grpc.StatusCode:
                try:
                    answer = method(request, metadata=metadata, timeout=10)
                    list(answer) if hasattr(answer, "__next__") else answer
                except grpc.RpcError as error:
                    return error.code()
                return grpc.StatusCode.OK

            return {
                "score": ask(glow.Score, pb.ScoreRequest()),
                "sample": ask(glow.Sample, pb.SampleRequest(n=1, temperature=0.5)),
                "infer": ask(oip.ModelInfer, oip_pb.ModelInferRequest(model_name="digits")),
                "stream": ask(oip.ModelStreamInfer, iter([oip_pb.ModelInferRequest()])),
                "model ready": ask(oip.ModelReady, oip_pb.ModelReadyRequest(name="digits")),
                "reflection": ask(reflect, iter([reflection_pb2.ServerReflectionRequest(list_services="")])),
                "load": ask(oip.RepositoryModelLoad, load),
            }

        codes = grpc.StatusCode
        assert set(every(None).values()) == {codes.UNAUTHENTICATED}
        assert set(every(METRICS).values()) == {codes.PERMISSION_DENIED}
        infer, admin = every(INFER), every(ADMIN)
        assert infer.pop("load") is codes.PERMISSION_DENIED
        assert admin.pop("load") not in (codes.PERMISSION_DENIED, codes.UNAUTHENTICATED)
        assert infer == admin
        assert not set(infer.values()) & {codes.PERMISSION_DENIED, codes.UNAUTHENTICATED}
        assert infer["reflection"] is infer["sample"] is codes.OK
        # Orchestrators have no token.
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        assert oip.ServerLive(oip_pb.ServerLiveRequest()).live
        assert oip.ServerReady(oip_pb.ServerReadyRequest()).ready


def test_calls_that_change_what_is_served_need_the_right_to_admin(
    run_server: RunServer, tokens: Path
) -> None:
    metadata = (("authorization", f"Bearer {INFER}"),)
    asked, denied = set(), set()
    with run_server(tokens=tokens, admin="on") as server, grpc.insecure_channel(address(server)) as channel:
        for file in (glow_service_pb2, grpc_service_pb2):
            (description,) = file.DESCRIPTOR.services_by_name.values()
            for method in description.methods:
                asked.add(method.name)
                call = channel.stream_stream(f"/{description.full_name}/{method.name}")
                try:
                    list(call(iter([b""]), metadata=metadata, timeout=20))
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                        denied.add(method.name)
    assert denied >= {"LoadModel", "UnloadModel", "RepositoryModelLoad", "RepositoryModelUnload"}
    changing = re.compile("Load|Unload|Reload|Set|Update|Delete")
    assert denied == {name for name in asked if changing.search(name)}


def test_a_request_that_has_no_token_is_not_received(run_server: RunServer, tokens: Path) -> None:
    large = pb.ScoreRequest()
    large.images.tensor.data = bytes(32 * 2**20)
    with (
        run_server(tokens=tokens) as server,
        forwarded(server.port) as (port, seen),
        grpc.insecure_channel(f"127.0.0.1:{port}", calls.CHANNEL_OPTIONS) as channel,
    ):
        assert status(lambda: GlowServiceStub(channel).Score(large)) is grpc.StatusCode.UNAUTHENTICATED
    assert seen["bytes"] < 8 * 2**20


@contextmanager
def forwarded(port: int) -> Iterator[tuple[int, dict[str, int]]]:
    """A port that leads to that one, and the counts of bytes to it and of connections."""
    seen = {"bytes": 0, "connections": 0}
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(source: socket.socket, target: socket.socket, count: bool) -> None:
        with source, target:
            try:
                while data := source.recv(2**16):
                    seen["bytes"] += len(data) if count else 0
                    target.sendall(data)
            except OSError:
                pass
            for side in (source, target):
                with suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            seen["connections"] += 1
            far = socket.create_connection(("127.0.0.1", port))
            threading.Thread(target=copy, args=(near, far, True), daemon=True).start()
            threading.Thread(target=copy, args=(far, near, False), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_changed_tokens_count_at_once_and_damaged_ones_not_at_all(
    run_server: RunServer, tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = "another-0123456789-0123456789"
    with run_server(tokens=tokens) as server, glowserve.Client(address(server), token=INFER) as client:
        client.models()
        tokens.write_text(f"app {new}\n")
        assert refusal(client.models)[0] is grpc.StatusCode.UNAUTHENTICATED
        assert models(server, token=new) == ["digits"]
        caplog.clear()
        with caplog.at_level(logging.INFO, "glowserve_service.security.security"):
            tokens.write_text("app short\n")
            assert models(server, token=new) == models(server, token=new) == ["digits"]
            tokens.unlink()
            assert models(server, token=new) == ["digits"]
            assert [
                record.levelname for record in lines_of("glowserve_service.security.security", caplog)
            ] == ["ERROR", "ERROR"]


def test_tokens_are_neither_logged_nor_told(
    run_server: RunServer, tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), run_server(tokens=tokens) as server:
        said = [
            str(refusal(lambda token=token: models(server, token=token))) for token in (METRICS, INFER + "x")
        ]
        models(server, token=INFER)
        tokens.write_text(f"{TOKENS}\nmore and more words\n")
        models(server, token=INFER)
        scrape_code(server, INFER)
    secrets = (INFER, ADMIN, METRICS)
    assert "words" not in caplog.text.replace("has 4 words", "")
    assert not [secret for secret in secrets if secret in caplog.text or secret in "".join(said)]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "tokens FILE cannot be read: No such file or directory"),
        ("", "tokens FILE is empty; write a line NAME TOKEN for each caller"),
        ("# nobody\n\n", "tokens FILE is empty; write a line NAME TOKEN for each caller"),
        ("app short", "tokens FILE, line 1: the token has 5 characters; it needs 20 or more"),
        (f"\napp {INFER}\nalone", "tokens FILE, line 3 has 1 words; write NAME TOKEN, or NAME TOKEN GROUPS"),
        (
            f"app {INFER} infer,all",
            "tokens FILE, line 1: the third word must be one or more of infer,admin,metrics",
        ),
        (f"app {INFER}\napp {ADMIN}", "tokens FILE has the same name twice"),
        (f"app {INFER}\nother {INFER}", "tokens FILE has the same token twice"),
        (f"äpp {INFER}", "tokens FILE has characters that are not ASCII"),
    ],
)
def test_tokens_that_cannot_be_used_end_the_start(
    run_server: RunServer, tmp_path: Path, content: str | None, sentence: str
) -> None:
    path = tmp_path / "listed"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match="tokens") as caught, run_server(tokens=path):
        pass
    assert str(caught.value) == sentence.replace("FILE", str(path))


# Metrics


def scrape_code(server: Server, token: str | None, context: ssl.SSLContext | None = None) -> int:
    scheme = "http" if context is None else "https"
    request = urllib.request.Request(f"{scheme}://localhost:{server.metrics_port}/metrics")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as response:
            assert b"glowserve_" in response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_metrics_want_a_token_where_one_has_that_right(run_server: RunServer, tokens: Path) -> None:
    with run_server(tokens=tokens) as server:
        assert [scrape_code(server, token) for token in (None, "wrong", INFER, METRICS)] == [
            401,
            401,
            403,
            200,
        ]
        tokens.write_text(f"app {INFER}\n")
        assert scrape_code(server, None) == 200


def test_metrics_are_encrypted_as_calls_are_and_no_silent_client_holds_them_up(
    run_server: RunServer, authority: Authority, tokens: Path
) -> None:
    context = ssl.create_default_context(cafile=authority.file)
    with tls_server(run_server, authority, tokens=tokens) as server:
        with socket.create_connection(("localhost", server.metrics_port)):
            began = time.monotonic()
            assert scrape_code(server, METRICS, context) == 200
            assert time.monotonic() - began < 5
        with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):
            scrape_code(server, METRICS)


def test_mutual_tls_holds_for_metrics_too(run_server: RunServer, authority: Authority) -> None:
    context = ssl.create_default_context(cafile=authority.file)
    with tls_server(run_server, authority, tls_client_ca=authority.file) as server:
        with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):
            scrape_code(server, None, context)
        context.load_cert_chain(*authority.pair("client", "client.example"))
        assert scrape_code(server, None, context) == 200


# The client's side


@pytest.mark.parametrize("target", ["192.0.2.1:8001", "service.example:8001", "dns:///service.example:8001"])
def test_a_token_does_not_cross_a_network_in_the_clear(target: str, authority: Authority) -> None:
    for client in (glowserve.Client, glowserve.AsyncClient):
        with pytest.raises(ValueError, match=f"the token would travel to {target} unencrypted"):
            client(target, token=INFER)
    glowserve.Client(target, token=INFER, ca=authority.file).close()
    glowserve.Client(target, token=INFER, tls=True).close()
    for near in ("localhost:1", "127.0.0.1:1", "[::1]:1", "unix:/tmp/nobody", "dns:///localhost:1"):
        glowserve.Client(near, token=INFER).close()


@pytest.mark.parametrize("token", ["", "two words", "line\n", "ümlaut-0123456789"])
def test_what_cannot_be_a_token_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(ValueError, match="the token is empty, or has other characters") as caught:
        glowserve.Client("localhost:1", token=token)
    assert not token or token not in str(caught.value)


def test_files_of_a_client_that_cannot_be_used_are_named(
    authority: Authority, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cert, key = authority.pair("client")
    other, _ = authority.pair("other")
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_bytes(b"\xff\x00 nonsense")
    locked = tmp_path / "locked.key"
    password = serialization.BestAvailableEncryption(b"secret")
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(private.private_bytes(pem, pkcs8, password))
    for credentials, sentence in (
        ({"ca": tmp_path / "no"}, f"certificate authority {tmp_path / 'no'} cannot be read: No such file"),
        ({"ca": tmp_path}, f"certificate authority {tmp_path} cannot be read: Is a directory"),
        ({"ca": nonsense}, f"certificate authority {nonsense} cannot be used; give certificates in PEM"),
        ({"ca": key}, f"certificate authority {key} cannot be used; give certificates in PEM"),
        ({"cert": cert}, "a client's certificate is of no use without its key; give both"),
        ({"key": key}, "a client's certificate is of no use without its key; give both"),
        ({"cert": other, "key": key}, f"key {key} does not belong to certificate {other}"),
        ({"cert": nonsense, "key": key}, f"certificate {nonsense} and key {key} cannot be used"),
        ({"cert": cert, "key": locked}, f"certificate {cert} and key {locked} cannot be used"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            glowserve.Client("localhost:1", **credentials)  # type: ignore[arg-type]
    assert capfd.readouterr().err == ""  # nobody was asked for the password


def test_the_command_line_asks_over_tls_with_a_token(
    run_server: RunServer,
    authority: Authority,
    tokens: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{INFER}\n")
    cert, key = map(str, authority.pair("client", "client.example"))
    with tls_server(run_server, authority, tokens=tokens, tls_client_ca=authority.file) as server:
        flags = ["--ca", str(authority.file), "--cert", cert, "--key", key, "--token-file", str(file)]
        out = str(tmp_path / "samples")
        sample = ["sample", "--server", address(server), "--n", "2", "--temperature", "0.5", "--out", out]
        assert main([*sample, *flags]) == 0
        assert main(["score", out, "--server", address(server), *flags]) == 0
        for name, value in {"CA": str(authority.file), "CERT": cert, "KEY": key, "TOKEN": INFER}.items():
            monkeypatch.setenv(f"GLOWSERVE_{name}", value)
        capsys.readouterr()
        assert main(["models", "--server", address(server), "--json"]) == 0
        assert [model["name"] for model in json.loads(capsys.readouterr().out)] == ["digits"]
        monkeypatch.delenv("GLOWSERVE_TOKEN")
        assert main(["models", "--server", address(server)]) == 1
        assert capsys.readouterr().err.startswith("glowserve: UNAUTHENTICATED: ")
        assert main(["models", "--server", address(server), "--token-file", str(tmp_path / "no")]) == 2
        assert capsys.readouterr().err == (
            f"glowserve: token file {tmp_path / 'no'} cannot be read: No such file or directory\n"
        )
        assert main(["models", "--server", address(server), "--ca", str(tmp_path / "no")]) == 2
        assert "cannot be read" in capsys.readouterr().err


# The health check of the container


@pytest.mark.parametrize("names", [(), ("glow.example",), ("*.glow.example",)])
@pytest.mark.parametrize("mutual", [False, True])
def test_the_health_check_works_with_any_certificate(
    run_server: RunServer,
    authority: Authority,
    stranger: Authority,
    tokens: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    mutual: bool,
) -> None:
    cert, key = authority.pair("server", *names)
    client_ca = stranger.file if mutual else None
    with run_server(tls_cert=cert, tls_key=key, tls_client_ca=client_ca, tokens=tokens) as server:
        target = f"127.0.0.1:{server.port}"
        assert not is_serving(target)
        monkeypatch.setenv("GLOWSERVE_TLS_CERT", str(cert))
        if mutual:
            monkeypatch.setenv("GLOWSERVE_TLS_KEY", str(key))
            monkeypatch.setenv("GLOWSERVE_TLS_CLIENT_CA", str(stranger.file))
            assert not is_serving(target)  # the service's own is not one of its clients'
            for name, path in zip(("CERT", "KEY"), stranger.pair("probe", "probe.example"), strict=True):
                monkeypatch.setenv(f"GLOWSERVE_{name}", str(path))
        assert is_serving(target)
        monkeypatch.setenv("GLOWSERVE_TLS_CERT", str(stranger.pair("other")[0]))
        assert not is_serving(target)
    assert not is_serving(target)


def test_the_health_check_shows_the_services_own_certificate_where_clients_need_one(
    run_server: RunServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tls_server(run_server, authority, tls_client_ca=authority.file) as server:
        for name in ("tls_cert", "tls_key", "tls_client_ca"):
            monkeypatch.setenv(f"GLOWSERVE_{name.upper()}", str(getattr(server.config, name)))
        assert is_serving(f"127.0.0.1:{server.port}")


# Where it listens, and how it begins


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_it_listens_on_ipv6(start_server: Any, authority: Authority) -> None:
    cert, key = authority.pair("server")
    flags = ("--host", "::1", "--tls-cert", str(cert), "--tls-key", str(key))
    with start_server(*flags) as (_, target, url):
        assert target.startswith("[::1]:")
        with glowserve.Client(target, ca=authority.file) as client:
            assert client.models()
        context = ssl.create_default_context(cafile=authority.file)
        with urllib.request.urlopen(url, timeout=10, context=context) as response:
            assert response.status == 200


@pytest.mark.parametrize(
    "settings", ["open", "open to admin", "encrypted", "asking for tokens", "both", "mutual", "loopback"]
)
def test_one_line_warns_of_an_open_service_and_names_the_remedy(
    run_server: RunServer,
    authority: Authority,
    tokens: Path,
    settings: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cert, key = authority.pair("server")
    tls: dict[str, Any] = {"tls_cert": cert, "tls_key": key}
    given, flags = {
        "open": ({}, ["--tls-cert", "--tokens"]),
        "open to admin": ({"admin": "on"}, ["--tls-cert", "--tokens", "unload models"]),
        "encrypted": (tls, ["--tokens"]),
        "asking for tokens": ({"tokens": tokens}, ["--tls-cert"]),
        "both": (tls | {"tokens": tokens}, []),
        "mutual": (tls | {"tls_client_ca": authority.file}, []),
        "loopback": ({"host": "localhost"}, []),
    }[settings]
    with (
        caplog.at_level(logging.WARNING, "glowserve_service.server"),
        run_server(**{"host": "0.0.0.0"} | given),
    ):
        warnings = [record.getMessage() for record in lines_of("glowserve_service.server", caplog)]
    assert len(warnings) == bool(flags)
    for flag in ("--tls-cert", "--tokens", "unload models"):
        assert (flag in "".join(warnings)) == (flag in flags)


def test_a_start_that_cannot_be_says_why_in_one_sentence(
    repository: Path, authority: Authority, tmp_path: Path
) -> None:
    cert, key = map(str, authority.pair("server"))
    other, _ = map(str, authority.pair("other"))
    here = ("--repository", str(repository))
    missing = str(tmp_path / "missing.pem")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert serve_fails(*here, "--port", port) == (
            f"port {port} on 127.0.0.1 cannot be listened on; is it in use?"
        )
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in serve_fails("--repository", str(tmp_path / "empty"))
    assert serve_fails(*here, "--tls-cert", missing, "--tls-key", key) == (
        f"certificate {missing} cannot be read: No such file or directory"
    )
    assert serve_fails(*here, "--tls-cert", other, "--tls-key", key) == (
        f"key {key} does not belong to certificate {other}; give the two of a pair"
    )
    assert (
        serve_fails(*here, "--tls-cert", cert) == "tls_cert and tls_key belong together; give both or neither"
    )
    assert serve_fails(*here, "--tls-client-ca", cert).startswith(
        "tls_client_ca is of no use without tls_cert"
    )


# Limits


def test_a_connection_has_so_many_calls_at_once_and_more_wait(run_server: RunServer) -> None:
    with (
        run_server(max_concurrent_streams=2) as server,
        grpc.insecure_channel(address(server)) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
        for watch in watches:
            next(watch)
        waiting = stub.Check.future(health_pb2.HealthCheckRequest())
        with pytest.raises(grpc.FutureTimeoutError):
            waiting.result(0.5)
        watches[0].cancel()
        assert waiting.result(10).status == health_pb2.HealthCheckResponse.SERVING
        watches[1].cancel()


def test_an_old_connection_is_replaced_and_no_call_fails(run_server: RunServer) -> None:
    with (
        run_server(max_connection_age_seconds=0.5) as server,
        forwarded(server.port) as (port, seen),
        # Without our retries: a call that failed is to be seen.
        grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_retries", 0)]) as channel,
    ):
        stub = GlowServiceStub(channel)
        slow = stub.Sample(pb.SampleRequest(n=5000, temperature=0.5, format=pb.IMAGE_FORMAT_RAW))
        next(slow)
        end, count = time.monotonic() + 3, 0
        while time.monotonic() < end:
            stub.ListModels(pb.ListModelsRequest())
            count += 1
        assert sum(1 for _ in slow) > 1
        assert seen["connections"] >= 3
        assert count > 50


def test_a_connection_of_any_age_may_be_allowed(run_server: RunServer) -> None:
    with run_server(max_connection_age_seconds=0.0) as server:
        assert models(server) == ["digits"]


def test_the_server_allows_the_pings_that_clients_send(
    run_server: RunServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Thirty times as fast as they are: a ping a second, from a client that waits for a call.
    options = [
        (name, value // 30 if name == "grpc.keepalive_time_ms" else value)
        for name, value in calls.CHANNEL_OPTIONS
    ]
    assert ("grpc.keepalive_time_ms", 1000) in options
    ended = {"allowed": threading.Event(), "not allowed": threading.Event()}
    with ExitStack() as stack:
        watches = {}
        for name, least in (
            ("allowed", glowserve_service.server._LEAST_BETWEEN_PINGS_MS // 30),
            ("not allowed", 300_000),
        ):
            monkeypatch.setattr("glowserve_glowserve_service.server._LEAST_BETWEEN_PINGS_MS", least)
            server = stack.enter_context(run_server())
            channel = stack.enter_context(grpc.insecure_channel(address(server), options))
            watches[name] = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            next(watches[name])
            watches[name].add_callback(ended[name].set)
        assert ended["not allowed"].wait(20)
        assert watches["not allowed"].code() is grpc.StatusCode.UNAVAILABLE
        assert not ended["allowed"].wait(1)
        watches["allowed"].cancel()


# What a request can reach, and what an answer tells

NASTY = [
    "../../../etc/passwd",
    "/etc/passwd",
    "digits/1/manifest.json",
    "digits\x00",
    "..",
    "~",
    "file:///etc/passwd",
]


def requests_with(text: str) -> list[tuple[str, Any]]:
    """Calls that have this text wherever a text, or bytes that could be taken for one, may stand."""
    spec, data = pb.ModelSpec(name=text), text.encode()
    images = pb.Images(encoded=pb.EncodedImages(data=[data]))
    return [
        ("Score", pb.ScoreRequest(model=spec, images=images)),
        ("Score", pb.ScoreRequest(images=images)),
        ("Encode", pb.EncodeRequest(model=spec, images=images)),
        ("Sample", pb.SampleRequest(model=spec, n=1)),
        ("Decode", pb.DecodeRequest(model=spec)),
        ("Interpolate", pb.InterpolateRequest(model=spec, images=images, steps=2)),
        ("GetModel", pb.GetModelRequest(model=spec)),
        ("ModelReady", oip_pb.ModelReadyRequest(name=text, version=text)),
        ("ModelMetadata", oip_pb.ModelMetadataRequest(name=text, version=text)),
        ("ModelConfig", oip_pb.ModelConfigRequest(name=text, version=text)),
        ("ModelStatistics", oip_pb.ModelStatisticsRequest(name=text, version=text)),
        ("ModelInfer", oip_pb.ModelInferRequest(model_name=text, model_version=text)),
        ("RepositoryIndex", oip_pb.RepositoryIndexRequest(repository_name=text)),
        ("RepositoryModelLoad", oip_pb.RepositoryModelLoadRequest(model_name=text)),
        ("RepositoryModelUnload", oip_pb.RepositoryModelUnloadRequest(model_name=text)),
    ]


def answer_to(channel: grpc.Channel, method: str, request: Any) -> tuple[grpc.StatusCode, str]:
    """What a call ends with."""
    stub = GlowServiceStub(channel) if hasattr(pb, f"{method}Request") else GRPCInferenceServiceStub(channel)
    try:
        answer = getattr(stub, method)(request, timeout=20)
        list(answer) if hasattr(answer, "__next__") else answer
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


class Opened:
    """Which paths this process opens, lists or looks at, while it is asked to note them."""

    def __init__(self) -> None:
        self.noting, self.paths = False, []  # type: tuple[bool, list[str]]
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.noting and event in (
            "open",
            "os.listdir",
            "os.scandir",
            "os.chdir",
            "glob.glob",
            "shutil.copyfile",
        ):
            self.paths.append(f"{event} {args[0]!r}")


@pytest.fixture(scope="module")
def opened() -> Opened:
    return Opened()


def test_nothing_that_a_request_says_reaches_the_file_system(server: Server, opened: Opened) -> None:
    with grpc.insecure_channel(address(server)) as channel:
        for method, request in requests_with("x"):  # imports what is imported late
            answer_to(channel, method, request)
        opened.paths.clear()
        opened.noting = True
        try:
            for text in NASTY:
                for method, request in requests_with(text):
                    answer_to(channel, method, request)
            assert opened.paths == []
            Path(os.devnull).read_bytes()
            assert len(opened.paths) == 1  # it does hear
        finally:
            opened.noting = False


def test_errors_tell_nothing_of_the_inside(server: Server, repository: Path) -> None:
    random = np.random.default_rng(0)
    said = []
    with grpc.insecure_channel(address(server)) as channel:
        for text in NASTY:
            ended = [answer_to(channel, method, request) for method, request in requests_with(text)]
            assert not {code for code, _ in ended} & {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
            said += [message for _, message in ended]
        for method in ("Score", "Encode", "Decode", "GetModel"):
            call = channel.unary_unary(f"/glowserve.v1.GlowService/{method}")
            for size in (1, 10, 100, 1000) * 5:
                with pytest.raises(grpc.RpcError) as caught:
                    call(random.bytes(size), timeout=20)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                said.append(caught.value.details())
    package = str(Path(glowserve.__file__).parents[1])
    assert sum(map(bool, said)) > 100
    for message in said:
        for inside in (
            "Traceback",
            ".py",
            "site-packages",
            "object at 0x",
            "Error(",
            package,
            str(repository),
        ):
            assert inside not in message


def test_the_metrics_server_stops(tokens: Path) -> None:
    from prometheus_client import CollectorRegistry

    server = MetricsServer("localhost", 0, CollectorRegistry(), None, None)
    port = server.server_port
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("localhost", port), 5)
