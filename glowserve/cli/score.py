"""`glowserve score`."""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import grpc
from tqdm import tqdm

from glowserve.cli.failure import Failure
from glowserve.cli.target import Target, add_target_arguments, target
from glowserve.client.errors import RequestError
from glowserve.images import (
    FILE_SUFFIXES,
    InvalidImageError,
    check_encoded,
    read_file,
)
from glowserve.scores import Scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a picture, or a folder of them")
    add_target_arguments(parser)
    parser.add_argument("--seed", type=int, help="of the dequantization noise; default: 0")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each file")


def run(args: argparse.Namespace) -> int:
    """Scores files; one that is no picture is told of and left out, and makes the exit code 1."""
    files = list(_expanded(args.files))
    width = max(len(str(file)) for file in files)
    scored = 0
    with (
        target(args) as asked,
        tqdm(total=len(files), desc="scoring", unit="", disable=None, leave=False) as bar,
    ):
        if not args.json:
            print(f"{'file':<{width}}{'bits/dim':>14}{'percentile':>12}{'log-likelihood':>16}")
        for together, scores in _score(asked, files, args.seed):
            columns = (scores.bits_per_dim, scores.percentile, scores.log_likelihood, scores.finite)
            for file, *row in zip(together, *(column.tolist() for column in columns), strict=True):
                tqdm.write(_json(file, *row) if args.json else _line(file, width, *row), file=sys.stdout)
            scored += len(scores)
            bar.update(len(scores))
    if failed := len(files) - scored:
        print(f"glowserve: {failed} of {len(files)} files could not be scored", file=sys.stderr)
    return 1 if failed else 0


def _score(asked: Target, files: Iterable[Path], seed: int | None) -> Iterator[tuple[list[Path], Scores]]:
    """Some files at a time with their scores, in order; tells of those that cannot be scored."""
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
            for scores in asked.client.iter_scores(unread, seed=seed, model=asked.model):
                yield [waiting.popleft() for _ in range(len(scores))], scores
            ended = True
        except RequestError as error:
            if error.code is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
        # One of those that wait was refused, and ended the stream: each of them is asked about alone.
        for file in list(waiting):
            if (alone := _score_alone(asked, file, seed)) is not None:
                yield [file], alone
        waiting.clear()


def _score_alone(asked: Target, file: Path, seed: int | None) -> Scores | None:
    if (data := _read(file)) is None:
        return None
    try:
        return asked.client.score(data, seed=seed, model=asked.model)
    except RequestError as error:
        if error.code is not grpc.StatusCode.INVALID_ARGUMENT:
            raise
        tqdm.write(f"glowserve: {file}: {error}", file=sys.stderr)
        return None


def _read(file: Path) -> bytes | None:
    """A picture's bytes; None, which is told of, where it is none."""
    try:
        data = read_file(file)
        check_encoded(data)
    except (InvalidImageError, OSError) as error:
        named = str(error) if str(file) in str(error) else f"{file}: {error}"
        tqdm.write(f"glowserve: {named}", file=sys.stderr)
        return None
    return data


def _line(file: Path, width: int, bits: float, percentile: float, nats: float, finite: bool) -> str:
    note = "" if finite else "  (not finite)"
    return f"{file!s:<{width}}{bits:>14.3f}{percentile:>12.1f}{nats:>16.1f}{note}"


def _json(file: Path, bits: float, percentile: float, nats: float, finite: bool) -> str:
    return json.dumps(
        {
            "file": str(file),
            "bits_per_dim": bits if finite else None,  # JSON has no infinity
            "percentile": percentile,
            "log_likelihood": nats if finite else None,
            "finite": finite,
        }
    )


def _expanded(paths: Sequence[Path]) -> Iterator[Path]:
    """The files themselves, and the pictures in the folders."""
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in FILE_SUFFIXES)
            if not found:
                raise Failure(
                    f"folder {path} holds no pictures; looked for {', '.join(sorted(FILE_SUFFIXES))}", 2
                )
            yield from found
        else:
            yield path
