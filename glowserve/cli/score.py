"""`glowserve score`."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from tqdm import tqdm

from glowserve.cli.failure import Failure
from glowserve.cli.target import Target, add_target_arguments, open_target
from glowserve.client.errors import RequestError
from glowserve.client.fitting import is_too_large
from glowserve.folders import FILE_SUFFIXES, FolderPictures, find_pictures, unpacking
from glowserve.images import InvalidImageError, check_encoded, read_file
from glowserve.output import printable
from glowserve.scores import MAX_IMPORTANCE_SAMPLES, TABLE, Scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="a picture, or a folder of pictures"
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
        help="call pictures anomalous at this rate of false alarms (default: 0.01, or the finest that the calibration "
        "permits)",
    )
    parser.add_argument(
        "--importance-samples",
        type=int,
        default=1,
        metavar="M",
        help=f"estimate the log-likelihood from M draws of noise, 1 to {MAX_IMPORTANCE_SAMPLES} (default: 1)",
    )
    parser.add_argument("--seed", type=int, help="seed of the dequantization noise; default: 0")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each file")


def run(args: argparse.Namespace) -> int:
    """Prints the scores of files. The exit code is 1 if a file cannot be scored or a subfolder cannot be listed.

    Raises:
        Failure: a folder has no pictures, or a call failed.
    """
    wanted = _wanted(args)
    files, folders = _expand(args.files)
    width = max(len(printable(str(file))) for file in files)
    scored = 0
    with (
        open_target(args) as target,
        tqdm(total=len(files), desc="scoring", unit="", disable=None, leave=False) as bar,
    ):
        lines = _Lines(width)
        for some, scores in _score(target, files, wanted):
            for file, row in zip(some, scores.rows(), strict=True):
                if args.json:
                    tqdm.write(_json(file, row, scores.false_alarm_rate), file=sys.stdout)
                else:
                    tqdm.write("\n".join(lines.of(file, row)), file=sys.stdout)
            scored += len(scores)
            bar.update(len(scores))
    for folder in folders:
        if left_out := folder.left_out():
            print(f"glowserve: folder {printable(str(folder.folder))}: left out {left_out}", file=sys.stderr)
    if failed := len(files) - scored:
        print(f"glowserve: {failed} of {len(files)} files could not be scored", file=sys.stderr)
    return 1 if failed or any(folder.unreadable for folder in folders) else 0


def _wanted(args: argparse.Namespace) -> dict[str, Any]:
    """What the calls of the client are given beside the images.

    Raises:
        Failure: there is no such score.
    """
    names = [name.strip() for name in args.scores.split(",") if name.strip()]
    for name in names:
        if name not in TABLE:
            raise Failure(f"score {printable(name)!r} is unknown; the scores are {', '.join(TABLE)}", 2)
    return {
        "scores": names,
        "false_alarm_rate": args.false_alarm_rate,
        "importance_samples": args.importance_samples,
        "seed": args.seed,
    }


def _score(
    target: Target, files: Iterable[Path], wanted: Mapping[str, Any]
) -> Iterator[tuple[list[Path], Scores]]:
    """Yields some files at a time with their scores, in order. Reports and skips files that cannot be scored."""
    waiting: deque[Path] = deque()

    def pictures() -> Iterator[bytes]:
        for file in files:
            if (data := _read(file)) is not None:
                waiting.append(file)
                yield data

    unread = pictures()
    ended = False
    while not ended:
        try:
            for scores in target.client.iter_scores(unread, model=target.model, **wanted):
                yield [waiting.popleft() for _ in range(len(scores))], scores
            ended = True
        except RequestError as error:
            if not _concerns_a_file(error):
                raise
        # The stream ended because one of the waiting files was refused: each is now scored in a call of its own.
        for file in list(waiting):
            if (alone := _score_alone(target, file, wanted)) is not None:
                yield [file], alone
        waiting.clear()


def _score_alone(target: Target, file: Path, wanted: Mapping[str, Any]) -> Scores | None:
    """The score of a file; None, after a report, if the file cannot be scored."""
    if (data := _read(file)) is None:
        return None
    try:
        return target.client.score(data, model=target.model, **wanted)
    except RequestError as error:
        if not _concerns_a_file(error):
            raise
        _report(f"{file}: {error}")
        return None


# The fields of a request that are the same for all files.
_ABOUT_ALL = re.compile(r"(requests\[\d+\]: )?(scores\[|false_alarm_rate|importance_samples)")


def _concerns_a_file(error: RequestError) -> bool:
    if _ABOUT_ALL.match(error.message):
        return False
    return error.code is grpc.StatusCode.INVALID_ARGUMENT or is_too_large(error)


def _report(sentence: str) -> None:
    """Says on standard error why a file cannot be scored."""
    tqdm.write(f"glowserve: {printable(sentence)}", file=sys.stderr)


def _read(file: Path) -> bytes | None:
    """The bytes of a picture; None, after a report, if the file is not a picture or cannot be read."""
    try:
        data = read_file(file)
        check_encoded(data)
    except (InvalidImageError, OSError) as error:
        named = str(error) if str(file) in str(error) else f"{file}: {error}"
        _report(f"{named}; {unpacking(file)}" if unpacking(file) else named)
        return None
    return data


class _Lines:
    """The lines of a table, with a column for each score that there is.

    Args:
        width: of the names of files.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._begun = False

    def of(self, file: Path, row: Mapping[str, Any]) -> Iterator[str]:
        """The line of a file; before the first, the headings."""
        names = ["bits_per_dim", "percentile", "log_likelihood"]
        names += [name for name in row if not TABLE[name].default]
        if not self._begun:
            self._begun = True
            headings = "".join(f"{_HEADINGS.get(name, name):>{_width(name)}}" for name in names)
            yield f"{'file':<{self._width}}{headings}"
        cells = "".join(f"{_cell(name, row[name]):>{_width(name)}}" for name in names)
        note = "" if row["finite"] else "  (not finite)"
        yield f"{printable(str(file)):<{self._width}}{cells}{note}"


_HEADINGS = {"bits_per_dim": "bits/dim", "log_likelihood": "log-likelihood"}
_WIDTHS = {"bits_per_dim": 14, "percentile": 12, "log_likelihood": 16, "log_prior": 32, "log_det": 32}
_DECIMALS = {"percentile": 1, "log_likelihood": 1, "anomaly_p_value": 5, "typicality_p_value": 5}


def _width(name: str) -> int:
    return _WIDTHS.get(name, len(name) + 2)


def _cell(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(f"{each:.1f}" for each in value)
    return f"{value:.{_DECIMALS.get(name, 3)}f}"


def _json(file: Path, row: Mapping[str, Any], false_alarm_rate: float | None) -> str:
    """A line of JSON. JSON has no infinity, so numbers that are not finite are null."""
    values = {name: _finite(value) for name, value in row.items()}
    rate = {} if false_alarm_rate is None else {"false_alarm_rate": false_alarm_rate}
    return json.dumps({"file": str(file)} | values | rate)


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return value if math.isfinite(value) else None


def _expand(paths: Sequence[Path]) -> tuple[list[Path], list[FolderPictures]]:
    """The files, and the pictures in the folders; and what else was found in the folders.

    Raises:
        Failure: a folder has no pictures, or cannot be listed.
    """
    files, folders = [], []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        try:
            found = find_pictures(path)
        except OSError as error:
            raise Failure(f"folder {printable(str(path))} cannot be listed: {error.strerror}", 2) from error
        if not found.names:
            left_out = found.left_out()
            raise Failure(
                f"folder {printable(str(path))} holds no pictures; looked for {', '.join(sorted(FILE_SUFFIXES))}"
                + (f"; left out {left_out}" if left_out else ""),
                2,
            )
        files += [path / name for name in found.names]
        folders.append(found)
    return files, folders
