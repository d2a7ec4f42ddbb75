"""`glowserve verify`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from glowserve.cli.failure import Failure
from glowserve.cli.proof import proof_json, proof_table
from glowserve.runtime.config import RuntimeConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="REPOSITORY/MODEL (the newest version), or .../VERSION"
    )
    parser.add_argument(
        "--device", default="auto", help="auto (CUDA if it works, else the CPU), cpu, cuda or tensorrt"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Reads every file of a bundle, loads its graphs, and tries its canary."""
    from glowserve.runtime.canary import check_canary
    from glowserve.runtime.engine import Engine
    from glowserve.runtime.errors import GlowserveError
    from glowserve.runtime.repository import newest_bundle

    try:
        bundle = newest_bundle(args.bundle)
        engine = Engine(bundle, RuntimeConfig(device=args.device))
        check_canary(engine, bundle)
    except GlowserveError as error:
        raise Failure(error, 1) from error
    manifest = bundle.manifest
    if args.json:
        print(json.dumps({"bundle": str(bundle.path), "device": engine.device} | proof_json(manifest)))
        return 0
    print(
        f"{bundle.path}: every file is the one that was exported, and on {engine.device} the graphs draw and"
    )
    print("score their canary as they did then. What was proved then:")
    print(proof_table(manifest))
    return 0
