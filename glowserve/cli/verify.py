"""`glowserve verify`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from glowserve.cli.failure import Failure
from glowserve.output import printable
from glowserve.runtime.config import RuntimeConfig
from glowserve.verification import verification_json, verification_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="REPOSITORY/MODEL (the newest version), or .../VERSION"
    )
    parser.add_argument(
        "--device", default="auto", help="auto (CUDA if it works, else the CPU), cpu, cuda or tensorrt"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Checks every file of a bundle against its hash, loads the graphs, and checks the canary."""
    from glowserve.runtime.attributes import bundle_attributes
    from glowserve.runtime.calibration import bundle_calibration
    from glowserve.runtime.canary import check_canary, check_n_bits
    from glowserve.runtime.engine import Engine
    from glowserve.runtime.errors import GlowserveError
    from glowserve.runtime.explanation import Explainer
    from glowserve.runtime.manifest import CALIBRATION, CLASS_CALIBRATION
    from glowserve.runtime.repository import PLACES, newest_bundle

    try:
        bundle = newest_bundle(args.bundle)
        engine = Engine(bundle, RuntimeConfig(device=args.device))
        check_canary(engine, bundle)
        check_n_bits(engine, bundle)
        for name in (CALIBRATION, CLASS_CALIBRATION):
            bundle_calibration(bundle, name)
        bundle_attributes(bundle)
        if bundle.has(PLACES):
            Explainer(bundle, engine).open()
    except GlowserveError as error:
        raise Failure(error, 1) from error
    manifest = bundle.manifest
    if args.json:
        print(json.dumps({"bundle": str(bundle.path), "device": engine.device} | verification_json(manifest)))
        return 0
    print(
        f"{printable(str(bundle.path))}: no file has changed since the export, and on {engine.device} the graphs "
        "reproduce their"
    )
    print("canary, a sample and its log-likelihood. The verification at the export measured:\n")
    print(verification_table(manifest))
    return 0
