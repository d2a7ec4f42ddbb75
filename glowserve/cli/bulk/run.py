"""`glowserve score FOLDER --out FILE`: from folders of pictures to a file of scores."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from glowserve.cli.bulk.engines import check_engine, rows_from
from glowserve.cli.bulk.journal import Header, Journal
from glowserve.cli.bulk.rows import Row
from glowserve.cli.bulk.tables import table_writer
from glowserve.cli.bulk.worst import MOST, Ranked, as_json, draw_sheet, ranking, shown, worst_of
from glowserve.cli.failure import Failure
from glowserve.cli.pictures import GivenPictures
from glowserve.cli.target import Target, open_target
from glowserve.messages import preparation_of
from glowserve.output import counted, printable, say


@dataclass
class Counts:
    """How many pictures a file of scores has."""

    pictures: int = 0
    """All rows."""

    failed: int = 0
    """Those without scores."""

    anomalous: int = 0
    """Those that are anomalous; 0 if the file does not have that score."""

    def passing(self, rows: Iterable[Row], columns: Sequence[str]) -> Iterator[Row]:
        """The rows, counted as they pass."""
        anomalous = columns.index("anomalous") if "anomalous" in columns else None
        for row in rows:
            self.pictures += 1
            self.failed += row.values is None
            self.anomalous += (
                anomalous is not None and row.values is not None and row.values[anomalous] is True
            )
            yield row


def score_to_file(
    args: argparse.Namespace, columns: Sequence[str], wanted: Mapping[str, Any]
) -> tuple[Counts, bool]:
    """Writes the scores of files to a file. A run that was ended before is resumed.

    Args:
        args: of `glowserve score`.
        columns: the names of the scores that the file has.
        wanted: the arguments of `Client.iter_scores` that these scores take, beside model and version.

    Returns:
        What the file has, and whether every subfolder could be listed.

    Raises:
        Failure: an argument is wrong, the journal of another run is in the way, or a call failed.
    """
    write = table_writer(args.out)
    _check(args)
    check_engine(args.engine)
    sheet, counts = _sheet(args.out), Counts()
    files = GivenPictures(args.files, own=(args.out, sheet))
    with open_target(args) as target:
        # The version is the one that is served now: a file has scores of one alone.
        manifest = target.client.manifest(model=target.model)
        header = Header(manifest.model, manifest.version, list(columns), dict(wanted))
        with Journal(args.out, header) as journal:
            _fill(journal, args, target, files, header)
            write(args.out, header, counts.passing(journal.rows(), columns))
            worst = worst_of(journal.rows(), columns, args.worst) if args.worst else []
            if args.worst:
                draw_sheet(worst, sheet, preparation_of(manifest.preparation).bits_used)
            journal.delete()
    _print(args, header, counts, worst)
    files.report_left_out()
    if counts.failed:
        failed = f"{counts.failed} of {counted(counts.pictures, 'file')} could not be scored"
        say(sys.stderr, f"glowserve: {failed}; the column `error` says why\n")
    return counts, files.complete


def _check(args: argparse.Namespace) -> None:
    """Checks what would else fail after hours of work."""
    out, parent = printable(str(args.out)), printable(str(args.out.parent))
    if args.out.is_dir():
        raise Failure(f"--out is {out}, a folder; name a file", 2)
    if not args.out.parent.is_dir():
        raise Failure(f"--out is {out}; there is no folder {parent}", 2)
    if args.worst is not None and not 1 <= args.worst <= MOST:
        raise Failure(f"--worst is {args.worst}; it must lie in 1 to {MOST}", 2)


def _sheet(out: Path) -> Path:
    """The contact sheet of the worst pictures, beside a file of scores."""
    return out.with_name(f"{out.stem}-worst.png")


def _fill(
    journal: Journal, args: argparse.Namespace, target: Target, files: GivenPictures, header: Header
) -> None:
    """Adds a row for each file that has none. If this is ended, says how to go on."""
    todo = (file for file in files if file not in journal.done)
    done = sum(file in journal.done for file in files) if journal.done else 0
    try:
        with tqdm(total=len(files), initial=done, desc="scoring", unit="", disable=None, leave=False) as bar:
            for rows in rows_from(args, target, todo, header):
                journal.add(rows)
                bar.update(len(rows))
    except BaseException:
        if not journal.done:
            journal.delete()
            raise
        kept = f"{len(journal.done)} of {counted(len(files), 'file')} are in {printable(str(journal.path))}"
        say(sys.stderr, f"glowserve: {kept}; the same command resumes the run\n")
        raise


def _print(args: argparse.Namespace, header: Header, counts: Counts, worst: Sequence[Ranked]) -> None:
    """Prints what was written, and the worst pictures."""
    sheet = _sheet(args.out)
    if args.json:
        common = {"model": header.model, "version": header.version, **header.wanted}
        result = {"out": str(args.out), "n": counts.pictures, "failed": counts.failed, **common}
        drawn = {"sheet": str(sheet), "worst": [as_json(picture) for picture in worst]} if args.worst else {}
        print(json.dumps(result | drawn))
        return
    print(printable(f"wrote {args.out}: {counted(counts.pictures, 'file')}, {counts.failed} without scores"))
    if args.worst:
        print(printable(f"wrote {sheet}: the {len(worst)} worst, by {ranking(header.columns)[0]}"))
    for i, picture in enumerate(worst, 1):
        print(f"{i:>5}  {shown(picture.score):>10}  {printable(picture.path)}")
