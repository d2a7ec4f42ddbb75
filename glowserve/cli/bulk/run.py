"""`glowserve score FOLDER --out FILE`: from folders of pictures to a file of scores."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import glowserve
from glowserve.cli.bulk.journal import Header, Journal
from glowserve.cli.bulk.rows import Row, rows_of
from glowserve.cli.bulk.tables import table_writer
from glowserve.cli.bulk.worst import MOST, Ranked, as_json, draw_sheet, ranking, shown, worst_of
from glowserve.cli.failure import Failure
from glowserve.cli.picture_tables import open_picture
from glowserve.cli.pictures import GivenPictures
from glowserve.cli.score import ANOMALIES
from glowserve.cli.target import Target, open_target
from glowserve.output import printable, say
from glowserve.scores import COLUMNS


@dataclass
class _Counts:
    """What a journal holds."""

    pictures: int = 0
    failed: int = 0
    anomalous: int = 0


def score_to_file(args: argparse.Namespace) -> int:
    """Writes the scores of files to a file. A run that was ended before goes on where it stopped.

    Returns:
        The exit code, as of `glowserve score` without a file.

    Raises:
        Failure: an argument is wrong, the journal of another run is in the way, or a call failed.
    """
    columns = tuple(COLUMNS)
    write = table_writer(args.out)
    _check(args, columns)
    if args.engine == "ray":
        _import_ray()
    files = GivenPictures(args.files)
    sheet = args.out.with_name(f"{args.out.stem}-worst.png")
    with ExitStack() as stack:
        target = stack.enter_context(open_target(args))
        header = _header(target, args.seed, columns)
        journal = stack.enter_context(Journal(args.out, header))
        _score(args, target, files, journal, header, leave_out=sheet)
        counts = _Counts()
        write(args.out, header, _counted(journal.rows(), columns, counts))
        worst = worst_of(journal.rows(), columns, args.worst) if args.worst else []
        if args.worst:
            draw_sheet(worst, sheet)
        journal.delete()
    _print(args, header, counts, worst, sheet)
    files.report_left_out()
    if counts.failed:
        failed = (
            f"{counts.failed} of {counts.pictures} files could not be scored; the column `error` says why"
        )
        say(sys.stderr, f"glowserve: {failed}\n")
    if args.fail_on_anomaly and counts.anomalous:
        say(sys.stderr, f"glowserve: {counts.anomalous} of {counts.pictures} files are anomalous\n")
        return ANOMALIES
    return 1 if counts.failed or not files.complete else 0


def _check(args: argparse.Namespace, columns: tuple[str, ...]) -> None:
    """Checks what would else fail after hours of work."""
    if args.out.is_dir():
        raise Failure(f"--out is {printable(str(args.out))}, a folder; name a file", 2)
    if not args.out.parent.is_dir():
        raise Failure(
            f"--out is {printable(str(args.out))}; there is no folder {printable(str(args.out.parent))}", 2
        )
    if args.worst is not None:
        if not 1 <= args.worst <= MOST:
            raise Failure(f"--worst is {args.worst}; it must lie in 1 to {MOST}", 2)
        ranking(columns)


def _import_ray() -> None:
    """Before anything else is opened."""
    try:
        import glowserve.cli.bulk.ray_engine  # noqa: F401
    except ModuleNotFoundError as error:
        raise Failure(
            f"--engine ray needs {error.name}, which is not installed: pip install 'glowserve[ray]'", 2
        ) from None


def _header(target: Target, seed: int | None, columns: tuple[str, ...]) -> Header:
    """What all rows have in common. The version is the one that is served now: a file has scores of one alone."""
    manifest = target.client.manifest(model=target.model)
    return Header(manifest.model, manifest.version, 0 if seed is None else seed, columns)


def _score(
    args: argparse.Namespace,
    target: Target,
    files: GivenPictures,
    journal: Journal,
    header: Header,
    leave_out: Path,
) -> None:
    """Adds a row to the journal for each file that has none. Says how to go on if this is ended."""
    own = leave_out.resolve()
    done = sum(file in journal.done for file in files) if journal.done else 0
    todo = (
        file
        for file in files
        if file not in journal.done and not (Path(file).name == own.name and Path(file).resolve() == own)
    )
    try:
        with tqdm(total=len(files), initial=done, desc="scoring", unit="", disable=None, leave=False) as bar:
            for rows in _rows(args, target, todo, header):
                journal.add(rows)
                bar.update(len(rows))
    except BaseException:
        say(
            sys.stderr,
            f"glowserve: {len(journal.done)} of {len(files)} files are in {printable(str(journal.path))}; "
            "the same command goes on from there\n",
        )
        raise


def _rows(
    args: argparse.Namespace, target: Target, files: Iterable[str], header: Header
) -> Iterator[list[Row]]:
    """The rows of some files at a time."""
    if args.engine == "ray":
        yield from _rows_of_ray(args, target, files, header)
        return
    for scored in target.client.iter_scores(
        map(open_picture, files), seed=header.seed, model=header.model, version=header.version
    ):
        yield list(rows_of(scored, header.columns))


def _rows_of_ray(
    args: argparse.Namespace, target: Target, files: Iterable[str], header: Header
) -> Iterator[list[Row]]:
    from glowserve.cli.bulk.ray_engine import ray_rows

    if args.server:
        yield from ray_rows(lambda: target.client, files, header, on_gpu=False)
    else:
        bundle = Path(args.model).resolve()
        yield from ray_rows(lambda: _open_for_one_core(bundle), files, header, on_gpu=True)


def _open_for_one_core(bundle: Path) -> glowserve.Client:
    """Opens a bundle in an actor, of which each has one core or one GPU."""
    from glowserve.client.transports.embedded import EmbeddedTransport
    from glowserve.runtime.config import RuntimeConfig

    return glowserve.Client(transport=EmbeddedTransport(bundle, RuntimeConfig(threads=1)))


def _counted(rows: Iterable[Row], columns: tuple[str, ...], counts: _Counts) -> Iterator[Row]:
    """The rows, counted as they pass."""
    anomalous = columns.index("anomalous") if "anomalous" in columns else None
    for row in rows:
        counts.pictures += 1
        counts.failed += row.values is None
        counts.anomalous += anomalous is not None and row.values is not None and bool(row.values[anomalous])
        yield row


def _print(
    args: argparse.Namespace, header: Header, counts: _Counts, worst: list[Ranked], sheet: Path
) -> None:
    """Prints what was written, and the worst pictures."""
    if args.json:
        result = {
            "out": str(args.out),
            "n": counts.pictures,
            "failed": counts.failed,
            "model": header.model,
            "version": header.version,
            "seed": header.seed,
        }
        drawn = {"sheet": str(sheet), "worst": [as_json(picture) for picture in worst]} if args.worst else {}
        print(json.dumps(result | drawn))
        return
    print(printable(f"wrote {args.out}: {counts.pictures} files, {counts.failed} without scores"))
    if args.worst:
        print(printable(f"wrote {sheet}: the {len(worst)} worst, by {ranking(header.columns)[0]}"))
    for i, picture in enumerate(worst, 1):
        print(f"{i:>5}  {shown(picture.score):>10}  {printable(picture.path)}")
