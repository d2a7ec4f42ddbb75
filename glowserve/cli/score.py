"""`glowserve score`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
from tqdm import tqdm

from glowserve.cli.failure import Failure
from glowserve.cli.target import Target, add_target_arguments, target
from glowserve.errors import RequestError
from glowserve.images import FILE_SUFFIXES, InvalidImageError, check_encoded, read_file

# Files that are read, checked and sent together.
_TOGETHER = 32


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
    failed = 0
    with (
        target(args) as asked,
        tqdm(total=len(files), desc="scoring", unit="", disable=None, leave=False) as bar,
    ):
        if not args.json:
            print(f"{'file':<{width}}{'bits/dim':>14}{'percentile':>12}{'log-likelihood':>16}")
        for first in range(0, len(files), _TOGETHER):
            together = files[first : first + _TOGETHER]
            failed += _score(asked, together, args, width)
            bar.update(len(together))
    if failed:
        print(f"glowserve: {failed} of {len(files)} files could not be scored", file=sys.stderr)
    return 1 if failed else 0


def _score(asked: Target, files: Sequence[Path], args: argparse.Namespace, width: int) -> int:
    """Scores and prints some files, and returns how many could not be scored."""
    pictures: list[tuple[Path, bytes]] = []
    for file in files:
        try:
            data = read_file(file)
            check_encoded(data)
            pictures.append((file, data))
        except (InvalidImageError, OSError) as error:
            named = str(error) if str(file) in str(error) else f"{file}: {error}"
            tqdm.write(f"glowserve: {named}", file=sys.stderr)
    return len(files) - len(pictures) + _ask(asked, pictures, args, width)


def _ask(asked: Target, pictures: Sequence[tuple[Path, bytes]], args: argparse.Namespace, width: int) -> int:
    """The same for files that can be read; where some are refused, one by one."""
    if not pictures:
        return 0
    try:
        scores = asked.source.score([data for _, data in pictures], seed=args.seed, model=asked.model)
    except RequestError as error:
        if error.code is not grpc.StatusCode.INVALID_ARGUMENT:
            raise
        if len(pictures) > 1:
            return sum(_ask(asked, [picture], args, width) for picture in pictures)
        tqdm.write(f"glowserve: {pictures[0][0]}: {error}", file=sys.stderr)
        return 1
    columns = (scores.bits_per_dim, scores.percentile, scores.log_likelihood, scores.finite)
    for (file, _), *row in zip(pictures, *(column.tolist() for column in columns), strict=True):
        tqdm.write(_json(file, *row) if args.json else _line(file, width, *row), file=sys.stdout)
    return 0


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
