"""`glowserve score`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from glowserve.cli.failure import Failure
from glowserve.cli.heat_maps import DrawnPicture, HeatMaps, check_folder, outliers
from glowserve.cli.picture_tables import open_picture
from glowserve.cli.pictures import GivenPictures, explanation
from glowserve.cli.target import add_target_arguments, open_target
from glowserve.client.requests import ScoreArguments
from glowserve.output import counted, printable
from glowserve.results import ImageError
from glowserve.scores import MAX_IMPORTANCE_SAMPLES, TABLE

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
    parser.add_argument(
        "--scores",
        default="",
        metavar="NAME,...",
        help=f"further scores: {', '.join(name for name, score in TABLE.items() if not score.default)}",
    )
    parser.add_argument(
        "--false-alarm-rate",
        type=float,
        metavar="RATE",
        help="call pictures, or a set, anomalous at this rate of false alarms; default: 0.01, or the finest that the "
        "calibration permits",
    )
    parser.add_argument(
        "--importance-samples",
        type=int,
        metavar="M",
        help=f"estimate the log-likelihood from M draws of noise, 1 to {MAX_IMPORTANCE_SAMPLES}; default: 1",
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="NAME",
        help="of a class-conditional model: score all pictures given this class; default: over all classes",
    )
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
        help="write path, scores and errors to a .parquet or .csv file; a run that was ended is resumed",
    )
    parser.add_argument(
        "--worst",
        type=int,
        metavar="N",
        help="with --out: print the N pictures that belong least, and draw them beside the file",
    )
    parser.add_argument(
        "--explain",
        type=Path,
        metavar="DIR",
        help="draw a heat map of each picture into this folder, and print which parts of it are out of line",
    )
    parser.add_argument(
        "--as-set",
        action="store_true",
        help="tell whether all pictures together come from the distribution of the calibration images",
    )
    parser.add_argument(
        "--fail-on-anomaly",
        action="store_true",
        help="exit with code 3 if a picture is anomalous; with --as-set, if the set is",
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
    if args.as_set:
        from glowserve.cli.as_set import score_set

        return score_set(args)
    wanted = _wanted(args)
    if args.explain:
        _check_explain(args)
    if args.out:
        from glowserve.cli.bulk.run import score_to_file

        counts, complete = score_to_file(args, ScoreArguments(**wanted).columns(), {"seed": 0} | wanted)
        return _exit_code(args, counts.anomalous, counts.pictures, counts.failed, complete)
    for flag in ("worst", "engine"):
        if getattr(args, flag) not in (None, "local"):
            raise Failure(f"--{flag} needs --out FILE, a .parquet or .csv file", 2)
    files = GivenPictures(args.files, own=[args.explain] if args.explain else [])
    width = max((len(printable(file)) for file in files), default=0)
    scored = anomalous = 0
    rate: float | None = None
    with (
        open_target(args) as target,
        tqdm(total=len(files), desc="scoring", unit="", disable=None, leave=False) as bar,
    ):
        maps = HeatMaps(args.explain, target) if args.explain else None
        pictures: Iterable[Any] = maps.open(files) if maps else map(open_picture, files)
        wanted |= {"version": maps.version} if maps else {}
        classes: Sequence[str] = ()
        if "log_posterior" in wanted.get("scores", ()) and not args.json:
            manifest = target.client.manifest(model=target.model, version=wanted.get("version", 0))
            # Their names are those of one version, which a new one must not replace meanwhile.
            wanted["version"], classes = manifest.version, [each.name for each in manifest.flow.classes]
        lines = _Lines(width, classes)
        for scores in target.client.iter_scores(pictures, model=target.model, **wanted):
            drawn = maps.draw(scores) if maps else [None] * len(scores)
            for error in scores.errors:
                _report(error)
            rate = scores.false_alarm_rate
            for file, row, heat_map in zip(scores.names, scores.rows(), drawn, strict=True):
                anomalous += bool(row.get("anomalous"))
                printed = [_json(file, row, rate, heat_map)] if args.json else lines.of(file, row, heat_map)
                tqdm.write("\n".join(printed), file=sys.stdout)
            scored += len(scores)
            bar.update(len(scores) + len(scores.errors))
    if rate is not None and not args.json:
        print(f"of images like the calibration images, {100 * rate:.3g} % are called anomalous")
    if maps and not args.json:
        print(printable(f"wrote {args.explain}: {counted(scored, 'heat map')}"))
    files.report_left_out()
    if failed := len(files) - scored:
        print(f"glowserve: {failed} of {counted(len(files), 'file')} could not be scored", file=sys.stderr)
    return _exit_code(args, anomalous, len(files), failed, files.complete)


def _wanted(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Client.iter_scores` that flags set, beside images and model.

    Raises:
        Failure: there is no such score.
    """
    names = [name.strip() for name in args.scores.split(",") if name.strip()]
    for name in names:
        if name not in TABLE:
            raise Failure(f"score {printable(name)!r} is unknown; the scores are {', '.join(TABLE)}", 2)
    if args.fail_on_anomaly and "anomalous" not in names:
        names.append("anomalous")
    wanted = {
        "seed": args.seed,
        "class_name": args.class_name,
        "scores": names or None,
        "false_alarm_rate": args.false_alarm_rate,
        "importance_samples": args.importance_samples,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _check_explain(args: argparse.Namespace) -> None:
    """Checks what `--explain` goes with.

    Raises:
        Failure: there is something that it does not go with.
    """
    if args.out:
        raise Failure(
            "--explain draws the pictures of one run, and --out writes a file that several runs may complete: give one "
            "of them; --worst finds the pictures of a file that are worth a heat map",
            2,
        )
    if args.class_name:
        raise Failure("--explain explains log p(x), and --class scores log p(x | c): give one of them", 2)
    check_folder(args.explain, args.files)


def _exit_code(args: argparse.Namespace, anomalous: int, n: int, failed: int, complete: bool) -> int:
    """The exit code, after a report if it is that of anomalies."""
    if args.fail_on_anomaly and anomalous:
        are = "is" if anomalous == 1 else "are"
        print(f"glowserve: {anomalous} of {counted(n, 'file')} {are} anomalous", file=sys.stderr)
        return _ANOMALIES
    return 1 if failed or not complete else 0


def _report(error: ImageError) -> None:
    """Says on standard error why a file cannot be scored."""
    tqdm.write(f"glowserve: {printable(f'{error.name}: {explanation(error)}')}", file=sys.stderr)


class _Lines:
    """The lines of a table, with a column for each score that there is.

    Args:
        width: of the names of files.
        classes: the names of the model's classes, if their probabilities are shown.
    """

    def __init__(self, width: int, classes: Sequence[str] = ()) -> None:
        self._width, self._classes = width, classes
        self._begun = False

    def of(self, file: str, row: Mapping[str, Any], drawn: DrawnPicture | None = None) -> Iterator[str]:
        """The line of a file; before the first, the headings."""
        names = ["bits_per_dim", "percentile", "log_likelihood"]
        names += [name for name in row if not TABLE[name].default]
        if not self._begun:
            self._begun = True
            headings = "".join(f"{_HEADINGS.get(name, name):>{_width(name)}}" for name in names)
            yield f"{'file':<{self._width}}{headings}{'' if drawn is None else _OUTLIERS}"
        cells = "".join(f"{self._cell(name, row[name]):>{_width(name)}}" for name in names)
        note = "" if row["finite"] else "  (not finite)"
        farthest = "" if drawn is None else f"  {outliers(drawn.parts)}"
        yield f"{printable(file):<{self._width}}{cells}{farthest}{note}"

    def _cell(self, name: str, value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        if name == "log_posterior":
            best = max(range(len(value)), key=value.__getitem__)
            return f"{printable(self._classes[best])[:_CLASS]} {math.exp(value[best]):.1%}"
        if isinstance(value, list):
            return " ".join(f"{each:.1f}" for each in value)
        return f"{value:.{_DECIMALS.get(name, 3)}f}"


_OUTLIERS = "  farthest from usual, in standard deviations"
_HEADINGS = {
    "bits_per_dim": "bits/dim",
    "log_likelihood": "log-likelihood",
    "log_posterior": "most probable class",
}
_CLASS = 20
"""So many characters of a class's name are shown."""
_WIDTHS = {
    "bits_per_dim": 14,
    "percentile": 12,
    "log_likelihood": 16,
    "log_prior": 32,
    "log_det": 32,
    "log_posterior": _CLASS + 9,
}
_DECIMALS = {"percentile": 1, "log_likelihood": 1, "anomaly_p_value": 5, "typicality_p_value": 5}


def _width(name: str) -> int:
    return _WIDTHS.get(name, len(name) + 2)


def _json(
    file: str, row: Mapping[str, Any], false_alarm_rate: float | None, drawn: DrawnPicture | None
) -> str:
    """A line of JSON. JSON has no infinity, so numbers that are not finite are null."""
    values = {name: _finite(value) for name, value in row.items()}
    rate = {} if false_alarm_rate is None else {"false_alarm_rate": false_alarm_rate}
    explained = {} if drawn is None else _explained(drawn)
    return json.dumps({"file": file} | values | rate | explained)


def _explained(drawn: DrawnPicture) -> dict[str, Any]:
    parts = [
        vars(part) | {"value": _finite(part.value), "deviation": _finite(part.deviation)}
        for part in drawn.parts
    ]
    return {"heat_map": str(drawn.heat_map), "parts": parts}


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return value if math.isfinite(value) else None
