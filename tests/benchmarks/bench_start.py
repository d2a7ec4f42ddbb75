"""How long a service takes from its start until it is SERVING, and how much of that its imports take.

    python tests/benchmarks/bench_start.py --repository out/demo/models

A start is: the start of Python, imports, checksums, two sessions, a run at every batch size, and the canary. For quiet
machines.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from glowserve_service.healthcheck import is_serving
from running import free_port

_POLL_SECONDS = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--repository", type=Path, help="a folder of bundles, MODEL/VERSION/")
    source.add_argument("--bundle", type=Path, help="one MODEL/VERSION/")
    parser.add_argument("--starts", type=int, default=5)
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        repository = args.repository or _repository_of(args.bundle, Path(folder))
        # In turns, so that other work of the machine affects both.
        starts, imports = zip(
            *((_start_seconds(repository), _import_seconds()) for _ in range(args.starts)), strict=True
        )
    for name, seconds in (("start until SERVING", starts), ("of that, imports", imports)):
        print(
            f"{name:<20}  median {median(seconds):.2f} s   least {min(seconds):.2f}   most {max(seconds):.2f}"
        )
    print("torch is not imported")


def _repository_of(bundle: Path, folder: Path) -> Path:
    """A repository with a link to one bundle."""
    model = folder / bundle.absolute().parent.name
    model.mkdir()
    (model / bundle.name).symlink_to(bundle.absolute())
    return folder


def _start_seconds(repository: Path) -> float:
    """How long a new service takes until health says SERVING."""
    port = free_port()
    command = [sys.executable, "-m", "glowserve", "serve", "--repository", str(repository), "--device", "cpu"]
    command += ["--port", str(port), "--metrics-port", "0", "--log-level", "warning"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        while not is_serving(f"127.0.0.1:{port}"):
            if server.poll() is not None:
                raise SystemExit(f"the service ended with exit code {server.returncode}")
            time.sleep(_POLL_SECONDS)
        seconds = time.perf_counter() - began
        server.terminate()
    return seconds


def _import_seconds() -> float:
    """How long the imports take in a new process, without the start of Python."""
    command = [sys.executable, str(Path(__file__).with_name("import_service.py"))]
    seconds, torch = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    if torch == "True":
        raise SystemExit("torch is imported; the service must start without it")
    return float(seconds)


if __name__ == "__main__":
    main()
