"""`glowserve score`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from glowserve.cli.failure import Failure
from glowserve.cli.picture_tables import open_picture
from glowserve.cli.pictures import GivenPictures, explanation
from glowserve.cli.target import add_target_arguments, open_target
from glowserve.output import printable
from glowserve.results import ImageError
from glowserve.scores import COLUMNS, Scores

# The exit code of `--fail-on-anomaly` if a picture is anomalous.
_ANOMALIES = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="a picture, a folder of pictures, or a .parquet file of them",
    )
    add_target_arguments(parser)
    parser.add_argument("--seed", type=int, help="seed of the dequantization noise; default: 0")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print a line of JSON for each file; with --out, one for the whole",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write path, scores and errors to a .parquet or .csv file; a run that was ended goes on where it stopped",
    )
    parser.add_argument(
        "--worst",
        type=int,
        metavar="N",
        help="with --out: print the N pictures that belong least, and draw them beside the file",
    )
    parser.add_argument(
        "--fail-on-anomaly", action="store_true", help="exit with code 3 if a picture is anomalous"
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="with --out: what computes; ray spreads the work over a cluster; default: local",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the scores of files, or writes them to a file.

    Returns:
        3 if a picture is anomalous and `--fail-on-anomaly` was given; else 1 if a file cannot be scored or a subfolder
        cannot be listed.

    Raises:
        Failure: an argument is wrong, a folder has no pictures, or a call failed.
    """
    if args.fail_on_anomaly and "anomalous" not in COLUMNS:
        raise Failure("--fail-on-anomaly needs the score `anomalous`, which this release does not compute", 2)
    if args.out:
        from glowserve.cli.bulk.run import score_to_file

        counts, complete = score_to_file(args, list(COLUMNS), {"seed": args.seed or 0})
        return _exit_code(args, counts.anomalous, counts.pictures, counts.failed, complete)
    for flag in ("worst", "engine"):
        if getattr(args, flag) not in (None, "local"):
            raise Failure(f"--{flag} needs --out FILE, a .parquet or .csv file", 2)
    files = GivenPictures(args.files)
    width = max((len(printable(file)) for file in files), default=0)
    scored = anomalous = 0
    with (
        open_target(args) as target,
        tqdm(total=len(files), desc="scoring", unit="", disable=None, leave=False) as bar,
    ):
        if not args.json:
            print(f"{'file':<{width}}{'bits/dim':>14}{'percentile':>12}{'log-likelihood':>16}")
        for scores in target.client.iter_scores(map(open_picture, files), seed=args.seed, model=target.model):
            for error in scores.errors:
                _report(error)
            for file, row in zip(scores.names, _rows(scores), strict=True):
                anomalous += bool(row.get("anomalous"))
                tqdm.write(_json(file, row) if args.json else _line(file, width, row), file=sys.stdout)
            scored += len(scores)
            bar.update(len(scores) + len(scores.errors))
    files.report_left_out()
    if failed := len(files) - scored:
        print(f"glowserve: {failed} of {len(files)} files could not be scored", file=sys.stderr)
    return _exit_code(args, anomalous, len(files), failed, files.complete)


def _exit_code(args: argparse.Namespace, anomalous: int, n: int, failed: int, complete: bool) -> int:
    """The exit code, after a report if it is that of anomalies."""
    if args.fail_on_anomaly and anomalous:
        print(f"glowserve: {anomalous} of {n} files are anomalous", file=sys.stderr)
        return _ANOMALIES
    return 1 if failed or not complete else 0


def _report(error: ImageError) -> None:
    """Says on standard error why a file cannot be scored."""
    tqdm.write(f"glowserve: {printable(f'{error.name}: {explanation(error)}')}", file=sys.stderr)


def _rows(scores: Scores) -> Iterator[dict[str, Any]]:
    """The scores of each image, by the names of the columns."""
    columns = [getattr(scores, name).tolist() for name in COLUMNS]
    for row in zip(*columns, strict=True):
        yield dict(zip(COLUMNS, row, strict=True))


def _line(file: str, width: int, row: Mapping[str, Any]) -> str:
    note = "" if row["finite"] else "  (not finite)"
    bits, percentile, nats = row["bits_per_dim"], row["percentile"], row["log_likelihood"]
    return f"{printable(file):<{width}}{bits:>14.3f}{percentile:>12.1f}{nats:>16.1f}{note}"


def _json(file: str, row: Mapping[str, Any]) -> str:
    """A line of JSON. JSON has no infinity, so numbers that are not finite are null."""
    values = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps({"file": file} | values)
