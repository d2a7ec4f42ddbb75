"""What each of the servers here is told."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def arguments(workers: str) -> argparse.Namespace:
    """The command line; the threads of a worker are those that there are cores for.

    Args:
        workers: what a worker is.
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
