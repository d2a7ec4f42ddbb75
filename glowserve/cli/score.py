"""`glowserve score`."""

from __future__ import annotations

import argparse
import json
import math
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
from glowserve.scores import COLUMNS, Scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="a picture, or a folder of pictures"
    )
    add_target_arguments(parser)
    parser.add_argument("--seed", type=int, help="seed of the dequantization noise; default: 0")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each file")


def run(args: argparse.Namespace) -> int:
    """Prints the scores of files. The exit code is 1 if a file cannot be scored or a subfolder cannot be listed.

    Raises:
        Failure: a folder has no pictures, or a call failed.
    """
    files, folders = _expand(args.files)
    width = max(len(printable(str(file))) for file in files)
    scored = 0
    with (
        open_target(args) as target,
        tqdm(total=len(files), desc="scoring", unit="", disable=None, leave=False) as bar,
    ):
        if not args.json:
            print(f"{'file':<{width}}{'bits/dim':>14}{'percentile':>12}{'log-likelihood':>16}")
        for some, scores in _score(target, files, args.seed):
            for file, row in zip(some, _rows(scores), strict=True):
                tqdm.write(_json(file, row) if args.json else _line(file, width, row), file=sys.stdout)
            scored += len(scores)
            bar.update(len(scores))
    for folder in folders:
        if left_out := folder.left_out():
            print(f"glowserve: folder {printable(str(folder.folder))}: left out {left_out}", file=sys.stderr)
    if failed := len(files) - scored:
        print(f"glowserve: {failed} of {len(files)} files could not be scored", file=sys.stderr)
    return 1 if failed or any(folder.unreadable for folder in folders) else 0


def _score(target: Target, files: Iterable[Path], seed: int | None) -> Iterator[tuple[list[Path], Scores]]:
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
            for scores in target.client.iter_scores(unread, seed=seed, model=target.model):
                yield [waiting.popleft() for _ in range(len(scores))], scores
            ended = True
        except RequestError as error:
            if not _concerns_a_file(error):
                raise
        # The stream ended because one of the waiting files was refused: each is now scored in a call of its own.
        for file in list(waiting):
            if (alone := _score_alone(target, file, seed)) is not None:
                yield [file], alone
        waiting.clear()


def _score_alone(target: Target, file: Path, seed: int | None) -> Scores | None:
    """The score of a file; None, after a report, if the file cannot be scored."""
    if (data := _read(file)) is None:
        return None
    try:
        return target.client.score(data, seed=seed, model=target.model)
    except RequestError as error:
        if not _concerns_a_file(error):
            raise
        _report(f"{file}: {error}")
        return None


def _concerns_a_file(error: RequestError) -> bool:
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


def _rows(scores: Scores) -> Iterator[dict[str, Any]]:
    """The scores of each image, by the names of the columns."""
    columns = [getattr(scores, name).tolist() for name in COLUMNS]
    for row in zip(*columns, strict=True):
        yield dict(zip(COLUMNS, row, strict=True))


def _line(file: Path, width: int, row: Mapping[str, Any]) -> str:
    note = "" if row["finite"] else "  (not finite)"
    bits, percentile, nats = row["bits_per_dim"], row["percentile"], row["log_likelihood"]
    return f"{printable(str(file)):<{width}}{bits:>14.3f}{percentile:>12.1f}{nats:>16.1f}{note}"


def _json(file: Path, row: Mapping[str, Any]) -> str:
    """A line of JSON. JSON has no infinity, so numbers that are not finite are null."""
    values = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps({"file": str(file)} | values)


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
