"""The environment around a service: variables of Kubernetes, mistaken variables, proxies, and addresses."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pytest
from glowserve_service import environment
from glowserve_service.config import ServiceConfig, variable
from glowserve_service.healthcheck import default_target, is_serving

import glowserve
from glowserve.cli.serve import _addresses
from tests.servers import RunServer, StartServer, failed_start
from tests.service import scraping
from tests.service.credentials import Authority
from tests.service.stubs import address

VARIABLES = [variable(setting) for setting in fields(ServiceConfig)]
PROXIES = ("http_proxy", "https_proxy", "grpc_proxy")


def links(service: str) -> dict[str, str]:
    """What Kubernetes sets for a Service with a port that is called `grpc`."""
    name = service.upper().replace("-", "_")
    link = "tcp://10.0.0.1:8002"
    return {
        f"{name}_SERVICE_HOST": "10.0.0.1",
        f"{name}_SERVICE_PORT": "8002",
        f"{name}_SERVICE_PORT_GRPC": "8002",
        f"{name}_PORT": link,
        f"{name}_PORT_8002_TCP": link,
        f"{name}_PORT_8002_TCP_PROTO": "tcp",
        f"{name}_PORT_8002_TCP_PORT": "8002",
        f"{name}_PORT_8002_TCP_ADDR": "10.0.0.1",
    }


SERVICES = ("glowserve", "glowserve-metrics", "glowserve-grpc", "glowserve-host", "glowserve-tokens")
KUBERNETES = {name: text for service in SERVICES for name, text in links(service).items()}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("GLOWSERVE_") or name.lower() in (*PROXIES, "no_proxy", "no_grpc_proxy"):
            monkeypatch.delenv(name)


# Variables


def test_the_variables_of_kubernetes_change_nothing(
    start_server: StartServer, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ports are those of the defaults, at an address that no other test listens on."""
    for name, text in KUBERNETES.items():
        monkeypatch.setenv(name, text)
    assert environment.mistaken(VARIABLES) == {}
    monkeypatch.setenv("GLOWSERVE_HOST", "127.0.0.77")
    assert default_target() == "127.0.0.77:8001"
    command = [sys.executable, "-m", "glowserve", "serve", "--repository", str(repository), "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
        _, log = process.communicate(timeout=60)
    assert (
        line == "glowserve: serving gRPC on 127.0.0.77:8001, metrics on http://127.0.0.77:8002/metrics\n"
    ), log
    unused = [line.partition(": ")[2] for line in log.splitlines() if "is not used" in line]
    sentence = "is not used: it is a link, as Kubernetes sets"
    assert unused == [f"$GLOWSERVE_GRPC_PORT {sentence}", f"$GLOWSERVE_METRICS_PORT {sentence}"]


@pytest.mark.parametrize("name", ["GLOWSERVE_GRPC_PORT", "GLOWSERVE_DRAIN_SECONDS", "GLOWSERVE_LOG_LEVEL"])
def test_a_wrong_variable_hurts_only_where_it_is_used(
    start_server: StartServer, repository: Path, name: str
) -> None:
    wrong = os.environ | {name: "nonsense"}
    command = [sys.executable, "-m", "glowserve", "serve", "--help"]
    assert (
        subprocess.run(command, env=wrong, stdout=subprocess.DEVNULL, timeout=60, check=False).returncode == 0
    )
    [sentence] = failed_start("--repository", str(repository), **{name: "nonsense"})
    assert f"${name}" in sentence
    flag = {
        "GLOWSERVE_DRAIN_SECONDS": ("--drain-seconds", "1"),
        "GLOWSERVE_LOG_LEVEL": ("--log-level", "info"),
    }
    with start_server(*flag.get(name, ()), env=wrong) as server:
        server.stop()


def test_a_variable_that_is_probably_mistaken_is_logged(start_server: StartServer) -> None:
    given = {
        "GLOWSERVE_PORT": "9000",
        "GLOWSERVE_MAX_BATCHSIZE": "64",
        "GLOWSERVE_COLOR": "red",
        "GLOWSERVE_TOKEN": "x",
    }
    with start_server(env=os.environ | given) as server:
        log = server.stop()
    lines = [line.partition(": ")[2] for line in log.splitlines() if "is not used" in line]
    assert lines == [
        "$GLOWSERVE_MAX_BATCHSIZE is not used; is $GLOWSERVE_MAX_BATCH_SIZE meant?",
        "$GLOWSERVE_PORT is not used; is $GLOWSERVE_HOST or $GLOWSERVE_GRPC_PORT meant?",
    ]


# Proxies


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The addresses that the environment's proxy was asked by; it closes each connection."""
    peers: list[str] = []

    def accept() -> None:
        with suppress(OSError):  # of the test's end
            while True:
                connection, peer = listener.accept()
                connection.close()
                peers.append(str(peer))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        for name in PROXIES:
            monkeypatch.setenv(name, f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield peers
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:{}",
        "localhost:{}",
        "LOCALHOST:{}",
        "dns:///localhost:{}",
        "ipv4:127.0.0.1:{}",
        "0.0.0.0:{}",
    ],
)
def test_no_proxy_is_asked_for_this_machine(run_server: RunServer, asked: list[str], target: str) -> None:
    with run_server(host="0.0.0.0") as server:
        with glowserve.Client(target.format(server.port)) as client:
            assert [model.name for model in client.models()] == ["digits"]
        assert is_serving(target.format(server.port))
        assert asked == []


async def test_no_proxy_is_asked_for_this_machine_over_tls(
    run_server: RunServer, authority: Authority, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    with run_server(**authority.settings()) as server:
        async with glowserve.AsyncClient(address(server), ca=authority.file) as client:
            assert len(await client.models()) == 1
        monkeypatch.setenv("GLOWSERVE_TLS_CERT", str(server.config.tls_cert))
        assert is_serving(address(server))
        assert asked == []


def test_a_proxy_is_asked_for_other_machines(asked: list[str]) -> None:
    with glowserve.Client("192.0.2.1:8001", timeout=2) as client, pytest.raises(glowserve.RequestError):
        client.models()
    assert asked


# Addresses


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("::1", "[::1]"),
        ("[::1]", "[::1]"),
        ("::", "[::]"),
        ("0.0.0.0", "0.0.0.0"),
        ("localhost", "localhost"),
        ("127.0.0.3", "127.0.0.3"),
    ],
)
def test_an_address_or_a_name_is_listened_on(run_server: RunServer, host: str, shown: str) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("no IPv6 here")
    with run_server(host=host) as server:
        target, url = re.findall(r" on ([^ ,\n]+)", _addresses(server))
        assert target == f"{shown}:{server.port}"
        assert scraping.value(url, "ready") == 1
        with glowserve.Client(target) as client:
            assert len(client.models()) == 1


@pytest.mark.parametrize(
    "host",
    [
        "unix:/tmp/socket",
        "unix:///tmp/socket",
        "http://0.0.0.0",
        "127.0.0.1:8001",
        "[localhost]",
        "a b",
        "[::1",
        "\0",
    ],
)
def test_a_host_that_is_something_else_is_refused_with_what_it_may_be(host: str) -> None:
    with pytest.raises(
        ValueError, match=r"^host is .*; it must be an IP address, such as .*, or the name of one$"
    ):
        ServiceConfig(repository=Path(), host=host)


@pytest.mark.parametrize(
    ("host", "reason"), [("192.0.2.1", "Cannot assign requested address"), ("no-such.invalid", "")]
)
def test_a_host_that_cannot_be_listened_on_is_not_called_in_use(
    repository: Path, host: str, reason: str
) -> None:
    lines = failed_start(
        "--repository", str(repository), "--host", host, "--port", "0", "--metrics-port", "0"
    )
    assert lines[-1].startswith(f"port 0 on {host} cannot be listened on: {reason}")
