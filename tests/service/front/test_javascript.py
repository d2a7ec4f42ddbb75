"""The JavaScript of the documentation, run on a real server: unencrypted, and over TLS with a token.

The tests need Node.js and npm's registry; without them they are skipped.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import trustme
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array, encode_png
from tests.servers import RunServer

ROOT = Path(__file__).parents[3]
PACKAGES = ("@grpc/grpc-js@1.14.7", "@grpc/proto-loader@0.8.1")
TOKEN = "infer-0123456789-0123456789"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: UInt8Array) -> Path:
    """The folder in which a reader of the documentation runs its scripts, with an image."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("no Node.js")
    path = tmp_path_factory.mktemp("javascript")
    command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel", "error", *PACKAGES]
    installed = subprocess.run(command, cwd=path, capture_output=True, text=True, timeout=300, check=False)
    if installed.returncode:
        pytest.skip(f"npm installs nothing: {installed.stderr.strip()[:200]}")
    (path / "protos").symlink_to(ROOT / "protos")
    (path / "a.png").write_bytes(encode_png(digits[0]))
    return path


def run(folder: Path, document: str, server: Server) -> list[str]:
    """What the JavaScript of a document prints. It ends by itself when its connection is idle."""
    (script,) = re.findall(r"```js\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert script.count("localhost:8001") == 1
    script = script.replace("localhost:8001", f"localhost:{server.port}")
    (folder / "script.js").write_text(script)
    done = subprocess.run(
        ["node", "script.js"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def score_in(lines: list[str]) -> dict[str, float]:
    """The numbers of a score that was printed as a JavaScript object."""
    return {name: float(value) for name, value in re.findall(r"(\w+): (-?[\d.]+)", "\n".join(lines))}


def assert_score(lines: list[str], embedded: glowserve.Client, image: UInt8Array) -> None:
    expected = embedded.score(image[None])
    score = score_in(lines)
    assert score["logLikelihood"] == pytest.approx(expected.log_likelihood[0], rel=1e-5)
    assert score["bitsPerDim"] == pytest.approx(expected.bits_per_dim[0], rel=1e-5)
    assert score["percentile"] == pytest.approx(expected.percentile[0])


def test_the_script_of_the_readme_scores(
    folder: Path, server: Server, embedded: glowserve.Client, digits: UInt8Array
) -> None:
    lines = run(folder, "README.md", server)
    assert "finite: true" in "\n".join(lines)
    assert_score(lines, embedded, digits[0])


def test_the_script_for_tls_scores_and_samples_with_a_token(
    folder: Path, run_server: RunServer, tmp_path: Path, embedded: glowserve.Client, digits: UInt8Array
) -> None:
    authority, cert, key = trustme.CA(), tmp_path / "server.pem", tmp_path / "server.key"
    issued = authority.issue_cert("localhost")
    cert.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    authority.cert_pem.write_to_path(folder / "ca.pem")
    (folder / "app.token").write_text(f"{TOKEN}\n")
    (tmp_path / "tokens").write_text(f"app {TOKEN}\n")
    with run_server(host="localhost", tls_cert=cert, tls_key=key, tokens=tmp_path / "tokens") as server:
        lines = run(folder, "docs/security.md", server)
        (folder / "app.token").write_text("not-the-token-0123456789\n")
        with pytest.raises(AssertionError, match="UNAUTHENTICATED"):
            run(folder, "docs/security.md", server)
    drawn = [int(line) for line in lines if line.strip().isdigit()]
    assert sum(drawn) == 40
    assert_score([line for line in lines if not line.strip().isdigit()], embedded, digits[0])
