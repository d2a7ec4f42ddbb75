"""The journal of a run."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from glowserve.cli.bulk.journal import Header, Journal
from glowserve.cli.bulk.rows import Row
from glowserve.cli.failure import Failure

HEADER = Header("digits", 1, ["bits_per_dim", "finite"], {"seed": 0})
ROWS = [
    Row("a.png", [0.1 + 0.2, True], None),
    Row(os.fsdecode(b"caf\xe9\n\xff.png"), [math.inf, False], None),
    Row("c.png", None, "no picture"),
]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    with Journal(tmp_path / "scores.csv", HEADER) as journal:
        journal.add(ROWS)
    return tmp_path / "scores.csv"


def test_rows_come_back_as_they_were(out: Path) -> None:
    with Journal(out, HEADER) as journal:
        assert list(journal.rows()) == ROWS
        assert journal.done == {row.path for row in ROWS}


def test_a_path_has_one_row(out: Path) -> None:
    with Journal(out, HEADER) as journal:
        journal.add([Row("a.png", [5.0, True], None), Row("d.png", [5.0, True], None)])
        assert [row.path for row in journal.rows()] == [*(row.path for row in ROWS), "d.png"]


def test_wherever_a_run_is_killed_whole_rows_stay_and_the_next_follow(out: Path) -> None:
    path = out.with_name("scores.csv.part")
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        with Journal(out, HEADER) as journal:
            kept = max(0, sum(end <= length for end in ends) - 1)
            assert list(journal.rows()) == ROWS[:kept], length
            journal.add(ROWS)
            assert list(journal.rows()) == ROWS, length


def test_the_rows_before_a_damaged_line_stay(out: Path) -> None:
    path = out.with_name("scores.csv.part")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], bytes(40) + b"\n", *lines[2:]]))
    with Journal(out, HEADER) as journal:
        assert list(journal.rows()) == ROWS[:1]


@pytest.mark.parametrize(
    "header",
    [
        Header("letters", 1, HEADER.columns, HEADER.wanted),
        Header("digits", 2, HEADER.columns, HEADER.wanted),
        Header("digits", 1, ["bits_per_dim"], HEADER.wanted),
        Header("digits", 1, HEADER.columns, {"seed": 1}),
    ],
)
def test_a_run_of_another_kind_does_not_go_on(out: Path, header: Header) -> None:
    with pytest.raises(Failure, match="is what is left of a run with digits version 1, seed 0"):
        Journal(out, header)
    with Journal(out, HEADER) as journal:
        assert list(journal.rows()) == ROWS


def test_a_header_without_rows_is_replaced(tmp_path: Path) -> None:
    Journal(tmp_path / "a.csv", HEADER).__exit__(None, None, None)
    other = Header("letters", 2, ["bits_per_dim"], {})
    with Journal(tmp_path / "a.csv", other) as journal:
        journal.add([Row("a", [1.0], None)])
    with Journal(tmp_path / "a.csv", other) as journal:
        assert journal.done == {"a"}


@pytest.mark.parametrize(
    "content", [b"my notes", b"my notes\n", b"[1]\n", b'{"model": 1, "other": 2}\n', b"\0" * 9]
)
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    part = tmp_path / "a.csv.part"
    part.write_bytes(content)
    with pytest.raises(Failure, match="was not left by a run of this command"):
        Journal(tmp_path / "a.csv", HEADER)
    assert part.read_bytes() == content
