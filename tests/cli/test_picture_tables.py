"""Parquet files of pictures, as `glowserve score` reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import glowserve
from glowserve.cli import main
from glowserve.cli.picture_tables import PictureTable, open_picture
from glowserve.images import InvalidImageError, UInt8Array, encode_png

Printed = pytest.CaptureFixture[str]


def save(path: Path, files: list[Any], *, column: str = "image", **others: list[Any]) -> Path:
    """A table as `datasets` writes it, in row groups of 7."""
    pictures = [file if file is None else {"bytes": file, "path": None} for file in files]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({column: pa.array(pictures, kind)} | others)
    pq.write_table(table, path, row_group_size=7)
    return path


def test_every_row_is_scored_under_its_name(
    tmp_path: Path, target: list[str], embedded: glowserve.Client, digits: UInt8Array, capsys: Printed
) -> None:
    (tmp_path / "sets").mkdir()
    files: list[Any] = [encode_png(image) for image in digits[:80]]
    save(tmp_path / "sets" / "a.parquet", files[:50], label=list(range(50)))
    save(tmp_path / "sets" / "b.parquet", [*files[50:], None, b"no"])
    assert main(["score", str(tmp_path / "sets"), "--json", *target]) == 1
    printed = capsys.readouterr()
    found = {row["file"]: row["log_likelihood"] for row in map(json.loads, printed.out.splitlines())}
    names = [
        f"{tmp_path}/sets/{file}.parquet[{row}]" for file, n in (("a", 50), ("b", 30)) for row in range(n)
    ]
    assert list(found) == names
    np.testing.assert_allclose(list(found.values()), embedded.score(digits[:80]).log_likelihood, rtol=1e-6)
    assert f"glowserve: {tmp_path}/sets/b.parquet[30]: the row has no bytes of a picture\n" in printed.err
    assert (
        f"glowserve: {tmp_path}/sets/b.parquet[31]: INVALID_ARGUMENT: 2 bytes are not a picture"
        in printed.err
    )


def test_rows_are_read_in_any_order(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", [str(row).encode() for row in range(40)])
    table = PictureTable(path)
    for row in (0, 1, 39, 7, 6, 6, 20, 13, 0):
        assert table.read(row) == str(row).encode()
    with pytest.raises(InvalidImageError, match="there is no such row; the file has 40"):
        table.read(40)
    assert table.read(3) == b"3"


def test_the_column_is_found_as_training_finds_it(tmp_path: Path) -> None:
    several = {"image": [b"right"], "thumbnail": [b"wrong"]}
    pq.write_table(pa.table(several), tmp_path / "a.parquet")
    assert PictureTable(tmp_path / "a.parquet").read(0) == b"right"
    save(tmp_path / "b.parquet", [b"right"], column="anything", label=[1])
    assert PictureTable(tmp_path / "b.parquet").read(0) == b"right"


@pytest.mark.parametrize("columns", [{"label": [1]}, {"one": [b"a"], "another": [b"b"]}])
def test_a_table_without_pictures_is_named(
    tmp_path: Path, repository: Path, columns: dict[str, Any], capsys: Printed
) -> None:
    pq.write_table(pa.table(columns), path := tmp_path / "a.parquet")
    assert main(["score", str(path), "--model", str(repository / "digits")]) == 2
    assert f"glowserve: {path} has no column of pictures" in capsys.readouterr().err


def test_a_file_that_is_no_table_is_named(tmp_path: Path, repository: Path, capsys: Printed) -> None:
    (path := tmp_path / "a.parquet").write_text("no table")
    assert main(["score", str(path), "--model", str(repository / "digits")]) == 2
    assert f"glowserve: {path} is no Parquet file" in capsys.readouterr().err


def test_a_picture_may_be_called_like_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet[3]"
    assert not isinstance(open_picture(str(path)), str)
    path.write_bytes(b"")
    assert open_picture(str(path)) == str(path)


def test_a_file_of_scores_is_no_set_of_pictures_of_its_own_folder(
    tmp_path: Path, repository: Path, digits: UInt8Array, capsys: Printed
) -> None:
    save(tmp_path / "a.parquet", [encode_png(image) for image in digits[:3]])
    command = ["score", str(tmp_path), "--out", str(tmp_path / "s.parquet"), "--worst", "2"]
    for _ in range(2):
        assert main([*command, "--model", str(repository / "digits"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["n"] == 3
