"""`glowserve score --explain DIR`: a heat map of each picture, and which parts of it are out of line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import glowserve
from glowserve.cli import main
from glowserve.heat_map import heat_map
from glowserve.images import UInt8Array, encode_png, to_pil

Printed = pytest.CaptureFixture[str]
OLD = Path(__file__).parents[1] / "data" / "0.1.0" / "models" / "digits"


@pytest.fixture
def folder(digits: UInt8Array, tmp_path: Path) -> Path:
    """Pictures of one name in two subfolders, a broken one, and one of another format."""
    path = tmp_path / "pictures"
    for name, image in zip(("one/a.png", "two/a.png", "two/c.bmp"), digits, strict=False):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        to_pil(image).save(path / name)
    (path / "two" / "b.png").write_text("no picture")
    return path


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "maps"


def names(maps: Path) -> list[str]:
    return sorted(path.name for path in maps.iterdir())


def test_one_heat_map_is_counted_in_the_singular(
    folder: Path, maps: Path, target: list[str], capsys: Printed
) -> None:
    assert main(["score", str(folder / "one" / "a.png"), "--explain", str(maps), *target]) == 0
    assert capsys.readouterr().out.endswith(f"wrote {maps}: 1 heat map\n")


def test_each_picture_has_a_heat_map_and_a_line_although_two_have_one_name(
    folder: Path, maps: Path, target: list[str], embedded: Any, digits: UInt8Array, capsys: Printed
) -> None:
    assert main(["score", str(folder), "--explain", str(maps), *target]) == 1
    printed = capsys.readouterr()
    header, *lines, wrote = printed.out.splitlines()
    assert header.endswith("  farthest from usual, in standard deviations")
    assert wrote == f"wrote {maps}: 3 heat maps"
    assert "1 of 4 files could not be scored" in printed.err
    assert names(maps) == ["000000-a.png", "000001-a.png", "000003-c.png"]
    explained = embedded.explain(digits[:3])
    scores = embedded.score(digits[:3])
    for i, (line, name) in enumerate(zip(lines, ("one/a.png", "two/a.png", "two/c.bmp"), strict=True)):
        file, bits, *_ = line.split()
        assert file == str(folder / name)
        assert float(bits) == pytest.approx(scores.bits_per_dim[i], abs=0.00051)
        farthest = explained.parts[i][0]
        shown = farthest.name + (f"[{farthest.level}]" if farthest.level else "")
        _, _, parts = line.partition(f"{scores.log_likelihood[i]:.1f}  ")
        assert parts.startswith(f"{shown} {'+' if farthest.deviation > 0 else '-'}")
        assert parts.count(",") == 2
    for i, name in enumerate(names(maps)):
        drawn, expected = (
            np.asarray(picture.convert("RGB"), int)
            for picture in (Image.open(maps / name), heat_map(digits[i], explained.deviations[i]))
        )
        assert drawn.shape == expected.shape
        assert np.abs(drawn - expected).max() <= 1  # batches of other sizes round differently


def test_json_has_the_file_of_the_heat_map_and_every_part(
    folder: Path, maps: Path, target: list[str], bundle: Any, capsys: Printed
) -> None:
    picture = str(folder / "two" / "a.png")
    assert main(["score", picture, picture, "--json", "--explain", str(maps), *target]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["heat_map"], second["heat_map"]) == (f"{maps}/000000-a.png", f"{maps}/000001-a.png")
    assert (maps / "000000-a.png").read_bytes() == (maps / "000001-a.png").read_bytes()
    assert len(first["parts"]) == 2 * bundle.manifest.flow.levels + 2
    assert first["parts"] == second["parts"]
    assert set(first["parts"][0]) == {"name", "level", "value", "deviation"}
    bits = next(part["value"] for part in first["parts"] if part["name"] == "bits_per_dim")
    assert bits == pytest.approx(first["bits_per_dim"], rel=1e-6)


def test_many_photographs_of_any_size_are_explained_with_other_scores_beside(
    tmp_path: Path, maps: Path, target: list[str], digits: UInt8Array, capsys: Printed
) -> None:
    (tmp_path / "many").mkdir()
    for i in range(100):
        to_pil(digits[i]).resize((24, 20)).save(tmp_path / "many" / f"{i:03}.jpg")
    wanted = ["--scores", "anomaly_p_value", "--seed", "5"]
    assert main(["score", str(tmp_path / "many"), "--explain", str(maps), *wanted, *target]) == 0
    assert names(maps) == [f"{i:06}-{i:03}.png" for i in range(100)]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 102
    assert "anomaly_p_value" in lines[0]


def test_a_folder_that_is_there_keeps_other_files_and_loses_those_of_pictures_that_cannot_be_scored(
    folder: Path, maps: Path, target: list[str]
) -> None:
    maps.mkdir(parents=True)
    for name in ("notes.txt", "000000-a.png", "000002-b.png"):
        (maps / name).write_text("older")
    assert main(["score", str(folder), "--explain", str(maps), *target]) == 1
    assert names(maps) == ["000000-a.png", "000001-a.png", "000003-c.png", "notes.txt"]
    assert (maps / "notes.txt").read_text() == "older"
    assert (maps / "000000-a.png").read_bytes().startswith(b"\x89PNG")


def test_heat_maps_in_the_folder_that_is_scored_are_not_scored_by_the_next_run(
    folder: Path, target: list[str], capsys: Printed
) -> None:
    (folder / "two" / "b.png").unlink()
    for _ in range(2):
        assert main(["score", str(folder), "--json", "--explain", str(folder / "maps"), *target]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 3
    assert len(names(folder / "maps")) == 3
    # A folder above the pictures is no reason to leave them out.
    assert main(["score", str(folder / "one"), "--json", "--explain", str(folder), *target]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_names_that_are_long_or_not_utf_8_become_names_of_files(
    digits: UInt8Array, tmp_path: Path, maps: Path, target: list[str]
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in ("ä" * 124 + ".png", os.fsdecode(b"caf\xe9.png"), "a\n\x1b[2J.png"):
        with (folder / name).open("wb") as file:
            to_pil(digits[0]).save(file, "PNG")
    assert main(["score", str(folder), "--explain", str(maps), *target]) == 0
    found = names(maps)
    assert found[0] == "000000-a\\n\\x1b[2J.png"
    assert found[1] == "000001-caf\\udce9.png"
    assert found[2] == f"000002-{'ä' * 100}.png"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "scores.csv"], "--explain draws the pictures of one run, and --out writes a file"),
        (["--worst", "3"], "--worst needs --out FILE"),
    ],
)
def test_what_does_not_go_together_is_refused(
    folder: Path, maps: Path, target: list[str], arguments: list[str], words: str, capsys: Printed
) -> None:
    assert main(["score", str(folder), "--explain", str(maps), *arguments, *target]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"glowserve: {words}")
    assert not maps.exists()


def test_a_place_for_heat_maps_that_is_none_is_refused(
    folder: Path, tmp_path: Path, target: list[str], capsys: Printed
) -> None:
    (tmp_path / "file").write_text("")
    for place, words in (
        (tmp_path / "file", "a file; name a folder"),
        (folder / "one" / "..", "which is scored; name another folder"),
    ):
        assert main(["score", str(folder), "--explain", str(place), *target]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"glowserve: --explain is {place}, {words}"
    assert main(["score", str(folder), "--explain", str(tmp_path / "file" / "x"), *target]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_a_bundle_that_cannot_explain_prints_the_command_and_nothing_else(
    folder: Path, maps: Path, capsys: Printed
) -> None:
    assert main(["score", str(folder / "one"), "--explain", str(maps), "--model", str(OLD)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("glowserve: FAILED_PRECONDITION: digits version 1 has no explain.onnx, ")
    assert names(maps) == []


def test_an_image_that_is_not_finite_is_drawn_and_null_in_json(
    folder: Path, maps: Path, embedded: Any, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    explain = glowserve.Client.explain

    def not_finite(client: Any, images: Any, **options: Any) -> Any:
        found = explain(client, images, **options)
        found.deviations[:] = np.nan
        parts = [[type(part)(part.name, part.level, np.inf, np.nan) for part in row] for row in found.parts]
        return type(found)(found.deviations.copy(), parts, ~found.finite, "digits", 1)

    monkeypatch.setattr("glowserve.open", lambda _model: embedded)
    monkeypatch.setattr(type(embedded), "close", lambda _client: None)
    monkeypatch.setattr(type(embedded), "explain", not_finite)
    command = ["score", str(folder / "one"), "--explain", str(maps), "--model", "any"]
    assert main(command) == 0
    assert "nan, " in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert {(part["value"], part["deviation"]) for part in row["parts"]} == {(None, None)}
    colours = Image.open(maps / "000000-a.png").convert("RGB").getcolors(2**20)
    assert (255, 0, 255) in {colour for _, colour in colours or []}


def test_a_picture_that_the_service_refuses_has_no_heat_map(
    folder: Path, maps: Path, target: list[str], digits: UInt8Array, capsys: Printed
) -> None:
    damaged = folder / "two" / "b.png"
    to_pil(np.arange(64, dtype=np.uint8).reshape(8, 8, 1)).save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:-30])
    assert main(["score", str(folder), "--explain", str(maps), *target]) == 1
    assert f"{damaged}: INVALID_ARGUMENT: the picture is damaged" in capsys.readouterr().err
    assert names(maps) == ["000000-a.png", "000001-a.png", "000003-c.png"]


def test_rows_of_a_table_of_pictures_are_explained(
    tmp_path: Path, digits: UInt8Array, target: list[str], capsys: Printed
) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = [encode_png(image) for image in digits[:70]]
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"image": pa.array(files, pa.binary())}), tmp_path / "set" / "test.parquet")
    for _ in range(2):  # the second time beside the heat maps of the first
        place = tmp_path / "set" / "maps"
        assert main(["score", str(tmp_path / "set"), "--json", "--explain", str(place), *target]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["heat_map"] for row in rows] == [f"{place}/{i:06}-test.png" for i in range(70)]
