"""The client's side: tokens that would cross a network, files that cannot be used, and flags of the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

import glowserve
from glowserve.cli import main
from glowserve.credentials import is_local, proxy_options
from tests.servers import RunServer
from tests.service.credentials import INFER, Authority
from tests.service.stubs import address


@pytest.mark.parametrize("target", ["192.0.2.1:8001", "service.example:8001", "dns:///service.example:8001"])
def test_a_token_does_not_cross_a_network_unencrypted(target: str, authority: Authority) -> None:
    for client in (glowserve.Client, glowserve.AsyncClient):
        with pytest.raises(ValueError, match=f"the token would travel to {target} unencrypted"):
            client(target, token=INFER)
    glowserve.Client(target, token=INFER, ca=authority.file).close()
    glowserve.Client(target, token=INFER, tls=True).close()
    for near in ("localhost:1", "127.0.0.1:1", "[::1]:1", "unix:/tmp/nobody", "dns:///localhost:1"):
        glowserve.Client(near, token=INFER).close()


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("localhost:1", True),
        ("LocalHost.:1", True),
        ("localhost", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("[::ffff:127.0.0.1]:1", True),
        ("ipv4:127.0.0.1:1", True),
        ("ipv6:[::1]:1", True),
        ("dns:localhost:1", True),
        ("0.0.0.0:1", True),
        ("[::]:1", True),
        ("unix-abstract:name", True),
        ("localhost.example:1", False),
        ("::1:8001", False),
        ("[::ffff:192.0.2.1]:1", False),
        ("ipv4:192.0.2.1:1,127.0.0.1:1", False),
        ("ipv4:127.0.0.1:1,192.0.2.1:1", False),
        ("dns://192.0.2.1/localhost:1", False),
        ("127.0.0.1.example:1", False),
        ("", False),
    ],
)
def test_a_target_is_local_only_if_all_calls_stay_on_this_machine(target: str, local: bool) -> None:
    assert is_local(target) is local
    assert proxy_options(target) == ([("grpc.enable_http_proxy", 0)] if local else [])


@pytest.mark.parametrize("token", ["", "two words", "line\n", "ümlaut-0123456789"])
def test_a_text_that_cannot_be_a_token_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(ValueError, match="the token is empty, or has other characters") as caught:
        glowserve.Client("localhost:1", token=token)
    assert not token or token not in str(caught.value)


def with_password(key: Path, locked: Path) -> Path:
    """A key that is encrypted with a password."""
    private: Any = serialization.load_pem_private_key(key.read_bytes(), None)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    locked.write_bytes(private.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"secret")))
    return locked


def test_files_that_cannot_be_used_are_named_and_no_password_is_asked_for(
    authority: Authority, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cert, key = authority.pair("client")
    other, _ = authority.pair("other")
    nonsense, missing = tmp_path / "nonsense.pem", tmp_path / "missing"
    nonsense.write_bytes(b"\xff\x00 nonsense")
    locked = with_password(key, tmp_path / "locked.key")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ca": missing}, f"certificate authority {missing} cannot be read: No such file"),
        ({"ca": tmp_path}, f"certificate authority {tmp_path} cannot be read: Is a directory"),
        ({"ca": nonsense}, f"certificate authority {nonsense} cannot be used; give certificates in PEM"),
        ({"ca": key}, f"certificate authority {key} cannot be used; give certificates in PEM"),
        ({"cert": cert}, "a client's certificate is of no use without its key; give both"),
        ({"key": key}, "a client's certificate is of no use without its key; give both"),
        ({"cert": other, "key": key}, f"key {key} does not belong to certificate {other}"),
        ({"cert": nonsense, "key": key}, f"certificate {nonsense} and key {key} cannot be used"),
        ({"cert": cert, "key": locked}, f"certificate {cert} and key {locked} cannot be used"),
    ]
    for credentials, sentence in cases:
        with pytest.raises(ValueError, match=re.escape(sentence)):
            glowserve.Client("localhost:1", **credentials)
    assert capfd.readouterr().err == ""


def test_the_command_line_calls_over_tls_with_a_token(
    run_server: RunServer,
    authority: Authority,
    tokens: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flags and variables say the same."""
    file, missing = tmp_path / "token", tmp_path / "missing"
    file.write_text(f"{INFER}\n")
    cert, key = map(str, authority.pair("client", "client.example"))
    with run_server(**authority.settings(), tokens=tokens, tls_client_ca=authority.file) as server:
        target = ["--server", address(server)]
        flags = ["--ca", str(authority.file), "--cert", cert, "--key", key, "--token-file", str(file)]
        out = str(tmp_path / "samples")
        sample = ["sample", "--n", "2", "--temperature", "0.5", "--out", out]
        assert main([*sample, *target, *flags]) == 0
        assert main(["score", out, *target, *flags]) == 0
        for name, value in {"CA": str(authority.file), "CERT": cert, "KEY": key, "TOKEN": INFER}.items():
            monkeypatch.setenv(f"GLOWSERVE_{name}", value)
        capsys.readouterr()
        assert main(["models", *target, "--json"]) == 0
        assert [model["name"] for model in json.loads(capsys.readouterr().out)] == ["digits"]
        monkeypatch.delenv("GLOWSERVE_TOKEN")
        assert main(["models", *target]) == 1
        assert capsys.readouterr().err.startswith("glowserve: UNAUTHENTICATED: ")
        assert main(["models", *target, "--token-file", str(missing)]) == 2
        assert capsys.readouterr().err == (
            f"glowserve: token file {missing} cannot be read: No such file or directory\n"
        )
        assert main(["models", *target, "--ca", str(missing)]) == 2
        assert "cannot be read" in capsys.readouterr().err
