"""The way of a folder to a file of scores: `glowserve score FOLDER --out FILE`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import glowserve
from glowserve.cli import main
from glowserve.images import UInt8Array
from glowserve.scores import COLUMNS
from tests.cli.bulk.folders import rows, save, spoil

Printed = pytest.CaptureFixture[str]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_every_picture_has_one_row_with_its_scores_or_its_error(
    tmp_path: Path,
    target: list[str],
    embedded: glowserve.Client,
    digits: UInt8Array,
    suffix: str,
    capsys: Printed,
) -> None:
    folder, out = save(digits[:100], tmp_path / "pictures"), tmp_path / f"scores{suffix}"
    errors = spoil(folder)

    assert main(["score", str(folder), "--out", str(out), "--seed", "3", *target]) == 1

    found, expected = rows(out), embedded.score(digits[:100], seed=3)
    assert found.keys() == {*errors, *(f"{folder}/{i:03}.png" for i in range(100))}
    for i in range(100):
        row = found[f"{folder}/{i:03}.png"]
        assert list(row) == [*COLUMNS, "error"]
        assert row["error"] is None
        assert row["finite"] is True
        assert row["log_likelihood"] == pytest.approx(expected.log_likelihood[i], rel=1e-6)
        assert row["bits_per_dim"] == pytest.approx(expected.bits_per_dim[i], rel=1e-6)
    for path, begin in errors.items():
        assert found[path]["error"].startswith(begin), path
        assert [found[path][name] for name in COLUMNS] == [None] * len(COLUMNS)
    printed = capsys.readouterr()
    assert printed.out == f"wrote {out}: 104 files, 4 without scores\n"
    assert printed.err == "glowserve: 4 of 104 files could not be scored; the column `error` says why\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", out.name]


def test_rows_stand_in_the_order_of_the_folder_and_a_file_is_there_once(
    tmp_path: Path, repository: Path, digits: UInt8Array
) -> None:
    folder, out = save(digits[:70], tmp_path / "pictures"), tmp_path / "scores.parquet"
    twice = [str(folder), str(folder / "003.png")]
    assert main(["score", *twice, "--out", str(out), "--model", str(repository / "digits")]) == 0
    assert pq.read_table(out)["path"].to_pylist() == [f"{folder}/{i:03}.png" for i in range(70)]
    assert pq.read_schema(out).metadata == {
        b"glowserve.model": b'"digits"',
        b"glowserve.version": b"1",
        b"glowserve.seed": b"0",
    }


def test_the_worst_pictures_are_printed_and_drawn(
    tmp_path: Path, target: list[str], embedded: glowserve.Client, digits: UInt8Array, capsys: Printed
) -> None:
    odd = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    folder, out = save(np.concatenate([digits[:50], odd]), tmp_path), tmp_path / "s.csv"
    command = ["score", str(folder), "--out", str(out), "--worst", "12", *target]
    assert main(command) == 0
    _, sheet, *lines = capsys.readouterr().out.splitlines()
    assert sheet == f"wrote {tmp_path}/s-worst.png: the 12 worst, by bits_per_dim"
    assert [int(line.split()[0]) for line in lines] == [*range(1, 13)]
    assert {line.split()[2] for line in lines[:3]} == {f"{folder}/{i:03}.png" for i in (50, 51, 52)}
    bits = [float(line.split()[1]) for line in lines]
    assert bits == sorted(bits, reverse=True)
    assert bits[0] == pytest.approx(embedded.score(odd).bits_per_dim.max(), abs=0.01)
    with Image.open(tmp_path / "s-worst.png") as drawn:
        assert drawn.size == (10 * 136 + 8, 2 * 152 + 8)  # two rows of ten

    # The sheet lies in the folder, and is not scored the next time.
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["n"], printed["failed"], printed["sheet"]) == (53, 0, f"{tmp_path}/s-worst.png")
    assert [picture["file"] for picture in printed["worst"]] == [line.split()[2] for line in lines]


def test_a_run_that_was_killed_goes_on_where_it_stopped(
    tmp_path: Path, repository: Path, digits: UInt8Array, capsys: Printed
) -> None:
    folder, out = save(digits, tmp_path / "pictures"), tmp_path / "scores.csv"
    part = tmp_path / "scores.csv.part"
    # A picture that takes as long as its writer: the first run waits for it, and so is killed in the middle.
    os.mkfifo(tmp_path / "pipe")
    files = [str(folder), str(tmp_path / "pipe")]
    command = ["score", *files, "--out", str(out), "--model", str(repository / "digits")]
    with subprocess.Popen([sys.executable, "-m", "glowserve", *command]) as process:
        end = time.monotonic() + 240
        while not (part.exists() and part.read_bytes().count(b"\n") > 64) and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    kept = part.read_bytes().splitlines(keepends=True)
    assert len(kept) > 64
    # It has a row of its own, and the half of another: the second run computes neither that nor all again.
    marked = kept[1].replace(b"null]", b'"kept"]')
    part.write_bytes(b"".join([kept[0], marked, *kept[2:-1], kept[-1][:20]]))
    (tmp_path / "pipe").unlink()
    (tmp_path / "pipe").write_bytes(b"")

    assert main(command) == 1

    found = rows(out)
    assert len(found) == len(digits) + 1
    errors = {path: row["error"].split(";")[0] for path, row in found.items() if row["error"]}
    assert errors == {
        f"{folder}/000.png": "kept",
        f"{tmp_path}/pipe": "0 bytes are not a picture that can be read",
    }
    assert not part.exists()


def test_a_run_that_the_service_ends_says_how_to_go_on(
    tmp_path: Path, repository: Path, digits: UInt8Array, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    folder, out = save(digits[:130], tmp_path / "pictures"), tmp_path / "scores.csv"
    command = ["score", str(folder), "--out", str(out), "--model", str(repository / "digits")]
    opened = glowserve.open(repository / "digits")
    whole = opened.iter_scores

    def broken(*arguments: Any, **options: Any) -> Any:
        yield next(whole(*arguments, **options))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("glowserve.open", lambda _: opened)
        patch.setattr(opened, "iter_scores", broken)
        assert main(command) == 130
    said = f"glowserve: 64 of 130 files are in {out}.part; the same command resumes the run\n"
    assert capsys.readouterr().err == f"{said}glowserve: interrupted\n"

    other = [*command, "--seed", "1"]
    assert main(other) == 2
    assert "is what is left of a run with digits version 1, seed 0" in capsys.readouterr().err
    assert main(command) == 0
    assert len(rows(out)) == 130
    assert main(other) == 0


def test_two_runs_do_not_write_the_same_file(
    tmp_path: Path, repository: Path, digits: UInt8Array, capsys: Printed
) -> None:
    from glowserve.cli.bulk.journal import Header, Journal

    folder, out = save(digits[:3], tmp_path / "pictures"), tmp_path / "scores.csv"
    with Journal(out, Header("digits", 1, list(COLUMNS), {"seed": 0})):
        assert main(["score", str(folder), "--out", str(out), "--model", str(repository / "digits")]) == 2
    assert "scores.csv.part is being written by another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out", "scores.txt"], "--out is scores.txt; its name must end in .parquet or .csv"),
        (["--out", "nowhere/scores.csv"], "there is no folder nowhere"),
        (["--out", "a.csv", "--worst", "0"], "--worst is 0; it must lie in 1 to 1000"),
        (["--worst", "3"], "--worst needs --out FILE"),
        (["--engine", "ray"], "--engine needs --out FILE"),
    ],
)
def test_flags_that_do_not_fit_are_refused_before_anything_is_scored(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    repository: Path,
    digits: UInt8Array,
    flags: list[str],
    words: str,
    capsys: Printed,
) -> None:
    save(digits[:1], tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    assert main(["score", "pictures", *flags, "--model", str(repository / "digits")]) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_a_run_that_never_had_a_row_leaves_nothing(
    tmp_path: Path, repository: Path, digits: UInt8Array, capsys: Printed
) -> None:
    folder, out = save(digits[:1], tmp_path / "pictures"), tmp_path / "scores.csv"
    assert (
        main(["score", str(folder), "--out", str(out), "--seed", "-1", "--model", str(repository / "digits")])
        == 2
    )
    assert capsys.readouterr().err == "glowserve: seed is -1; it must lie in 0 to 2^64 - 1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


@pytest.mark.parametrize(
    ("flags", "package", "extra"),
    [(["--out", "a.parquet"], "pyarrow", "parquet"), (["--out", "a.csv", "--engine", "ray"], "ray", "ray")],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    repository: Path,
    digits: UInt8Array,
    flags: list[str],
    package: str,
    extra: str,
    capsys: Printed,
) -> None:
    save(digits[:1], tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "glowserve.cli.bulk.ray_engine", raising=False)
    assert main(["score", "pictures", *flags, "--model", str(repository / "digits")]) == 2
    error = capsys.readouterr().err
    assert f"needs {package}, which is not installed: pip install 'glowserve[{extra}]'" in error
