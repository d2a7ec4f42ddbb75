"""No process of ours reports to anybody: it asks nobody but its own machine, and leaves nothing in the home folder.

ONNX Runtime makes its files when it is imported and reports some ten seconds later; `datasets` reports at once.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import glowserve
from glowserve.images import UInt8Array, encode_png
from tests.servers import StartServer

# ONNX Runtime does not report where it finds one of these.
_CI = ("CI", "TF_BUILD", "GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL", "BUILD_ID", "TRAVIS", "CIRCLECI")
_QUIET = ("ORT_DISABLE_TELEMETRY", "HF_UPDATE_DOWNLOAD_COUNTS", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
_TINY = (
    "--device",
    "cpu",
    "--n-bits",
    "4",
    "--levels",
    "2",
    "--steps-per-level",
    "1",
    "--width",
    "4",
    "--steps",
    "2",
)
_ADDRESS = re.compile(r'(?:inet_addr\(|inet_pton\(AF_INET6, )"([^"]+)"')
_OWN = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
_CACHES = ("MPLCONFIGDIR", "HF_HOME")
"""The libraries' own caches, which their variables move."""


@dataclass(frozen=True)
class Watched:
    """A user with an empty home folder, whose processes are watched if there is `strace`."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def trace(self) -> Path:
        return self.folder / "trace"

    @property
    def environment(self) -> dict[str, str]:
        left_out = (*_CI, *_QUIET, "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
        kept = {name: text for name, text in os.environ.items() if name not in left_out}
        caches = {name: str(self.folder / "caches" / name) for name in _CACHES}
        return kept | caches | {"HOME": str(self.home)}

    @property
    def program(self) -> list[str]:
        """Python, below strace."""
        if shutil.which("strace") is None:
            return [sys.executable]
        calls = "trace=connect,sendto,sendmsg,sendmmsg"
        strace = ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-A"]  # other calls are not slowed down
        return [*strace, "-e", calls, "-o", str(self.trace), sys.executable]

    def run(self, *arguments: str) -> None:
        """Runs `python ARGUMENTS`, which must succeed."""
        command = [*self.program, *arguments]
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def asked(self) -> set[str]:
        """The addresses beyond this machine that were asked."""
        lines = self.trace.read_text().splitlines() if self.trace.exists() else []
        return {
            address
            for line in lines
            for address in _ADDRESS.findall(line)
            if address not in _OWN or "htons(53)" in line
        }

    def left(self) -> list[str]:
        """The files in the home folder."""
        return [str(path.relative_to(self.home)) for path in self.home.rglob("*") if path.is_file()]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    for name in ("home", "caches"):
        (tmp_path / name).mkdir()
    return Watched(tmp_path)


def test_a_bundle_in_the_users_process_reports_to_nobody(
    watched: Watched, repository: Path, digits: UInt8Array
) -> None:
    (watched.folder / "picture.png").write_bytes(encode_png(digits[0]))
    watched.run("-m", "glowserve", "score", "--model", str(repository / "digits"), "picture.png")
    assert (watched.asked(), watched.left()) == (set(), [])
    made = {path.name for path in watched.folder.iterdir()} - {"trace"}
    assert made == {"caches", "home", "picture.png"}


# The HTTP server of the standard library asks the resolver for the name of its host.
@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.5"])
def test_a_service_asks_and_reports_to_nobody(
    watched: Watched, start_server: StartServer, digits: UInt8Array, host: str
) -> None:
    program = (
        "-c",
        "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])",
        *watched.program,
        "-m",
        "glowserve",
    )
    with start_server("--host", host, program=program, env=watched.environment, cwd=watched.folder) as server:
        with glowserve.Client(server.target) as client:
            client.score(digits[:2])
        server.stop()
    assert (watched.asked(), watched.left()) == (set(), [])


def test_the_exporter_imported_first_is_quiet(watched: Watched) -> None:
    watched.run("-c", "import glowserve_export.bundle, sys; assert 'onnxruntime' in sys.modules")
    assert (watched.asked(), watched.left()) == (set(), [])


def test_training_on_local_files_asks_nobody(watched: Watched, digits: UInt8Array) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"bytes": encode_png(image), "path": None} for image in digits[:80]]
    pyarrow.parquet.write_table(pyarrow.table({"image": rows}), watched.folder / "images.parquet")
    watched.run(
        "-m", "glowserve", "train", "--data", "images.parquet", "--out", "run", "--batch-size", "16", *_TINY
    )
    assert (watched.asked(), watched.left()) == (set(), [])


@pytest.mark.parametrize(("given", "seen"), [("0", "0"), ("", "1"), (None, "1"), ("1", "1")])
def test_reports_that_the_user_has_turned_on_stay_on(given: str | None, seen: str) -> None:
    kept = {name: text for name, text in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    chosen = {} if given is None else {"ORT_DISABLE_TELEMETRY": given}
    program = "import os; import glowserve.runtime.ort; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    # Where the variable is on, ONNX Runtime makes files in the home folder.
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=kept | chosen | {"HOME": "/nonexistent", "CI": "true"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == seen
