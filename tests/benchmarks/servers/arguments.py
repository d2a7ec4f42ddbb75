"""The command line of the servers in this folder."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def arguments(workers: str) -> argparse.Namespace:
    """Parses the command line. `threads`, which is added, is the number of cores divided by the number of workers.

    Args:
        workers: the help text of --workers.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--graph", type=Path, required=True, help="forward.onnx")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-batch-size", type=int, required=True)
    parser.add_argument("--delay-ms", type=float, required=True, help="how long a batch waits to be full")
    parser.add_argument("--workers", type=int, required=True, help=workers)
    args = parser.parse_args()
    args.threads = max(1, (os.cpu_count() or 1) // max(1, args.workers))
    return args
