"""How long a service takes from its start to SERVING, and how much of that goes into imports.

    python tests/benchmarks/bench_start.py --repository out/demo/models

Python's own start, imports, checksums, two sessions, a run at every batch size, and the canary. For quiet machines.
"""

from __future__ import annotations

import argparse
import platform
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from glowserve_service.healthcheck import is_serving

# What the service imports before it reads its first bundle, and whether that brings in torch.
_IMPORT = (
    "import time; began = time.perf_counter(); import glowserve.cli.serve, service.logs, service.server; "
    "import sys; print(time.perf_counter() - began, 'torch' in sys.modules)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--repository", type=Path, help="a folder of bundles, MODEL/VERSION/")
    what.add_argument("--bundle", type=Path, help="one of them")
    parser.add_argument("--starts", type=int, default=5)
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        if args.bundle:
            model = Path(folder) / args.bundle.absolute().parent.name
            model.mkdir()
            (model / args.bundle.name).symlink_to(args.bundle.absolute())
        repository = Path(folder) if args.bundle else args.repository
        # By turns, so that what else the machine does weighs on both.
        starts, imports = zip(*((_start(repository), _import()) for _ in range(args.starts)), strict=True)
    for name, seconds in (("start to SERVING", starts), ("of that, imports", imports)):
        print(f"{name}   median {median(seconds):.2f} s   least {min(seconds):.2f}   most {max(seconds):.2f}")
    print("torch is not imported")


def _start(repository: Path) -> float:
    """Seconds until a new service says SERVING."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "glowserve", "serve", "--repository", str(repository), "--device", "cpu"]
    command += ["--port", str(port), "--metrics-port", "0", "--log-level", "warning"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        while not is_serving(f"127.0.0.1:{port}"):
            if server.poll() is not None:
                raise SystemExit(f"the service ended with exit code {server.returncode}")
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        server.terminate()
    return seconds


def _import() -> float:
    """Seconds that imports take in a new process, without Python's own start."""
    command = [sys.executable, "-c", _IMPORT]
    seconds, torch = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    if torch == "True":
        raise SystemExit("torch is imported: a service shall start without")
    return float(seconds)


if __name__ == "__main__":
    main()
