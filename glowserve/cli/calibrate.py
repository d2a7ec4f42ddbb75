"""`glowserve calibrate`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from glowserve.cli.failure import Failure
from glowserve.output import counted, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "bundle",
        type=Path,
        metavar="BUNDLE",
        help="REPOSITORY/MODEL (the newest version), or .../VERSION; the next VERSION beside it is written",
    )
    parser.add_argument(
        "--data",
        required=True,
        help="images that the model was not trained on: the training data, of which the held-out images are taken; "
        "RUN_DIR/held_out.npz; or others, of which a quarter is for the density, a quarter is left for tests, and the "
        "rest calibrates (of data with splits of its own, the test images alone are used)",
    )
    parser.add_argument(
        "--label-column",
        metavar="NAME",
        help="of a class-conditional model: the column of labels in --data (default: the only one)",
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="(default: auto)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Writes a bundle with the same graphs and another calibration as the next version."""
    from glowserve_export.errors import ExportError
    from glowserve_export.recalibration import recalibrate
    from glowserve_training.errors import TrainingError
    from glowserve_training.hardware import use_allowed_cores

    from glowserve.runtime.calibration import bundle_calibration
    from glowserve.runtime.errors import GlowserveError
    from glowserve.runtime.repository import newest_bundle
    from glowserve.scores.conformal import resolution

    use_allowed_cores()
    try:
        bundle, tests = recalibrate(
            newest_bundle(args.bundle),
            args.data,
            label_column=args.label_column,
            device=args.device,
            say=_say,
        )
        calibration = bundle_calibration(bundle)
    except ExportError as error:
        raise Failure(error, 1) from error
    except (TrainingError, GlowserveError, ValueError, OSError) as error:
        raise Failure(error, 2) from error
    assert calibration is not None
    images, fitting = len(calibration.images), len(calibration.fitting)
    if args.json:
        result = {"bundle": str(bundle.path), "version": bundle.manifest.version}
        counts = {"calibration_images": images, "fitting_images": fitting, "test_images": tests}
        print(json.dumps(result | counts))
    else:
        print(
            f"calibrated on {counted(images, 'image')}, with a density of {counted(fitting, 'other')}: p-values and "
            f"false-alarm rates go down to {resolution(images):.3g}"
        )
        print(
            f"{counted(tests, 'more image')} left for tests: `glowserve evaluate` with the same --data takes them"
        )
        print(printable(f"wrote {bundle.path}"))
    return 0


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr)
