"""`glowserve score`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glowserve_service.server import Server
from PIL import Image

import glowserve
from glowserve.cli import main
from glowserve.images import UInt8Array, to_pil
from glowserve.scores import COLUMNS
from glowserve.v1 import glow_service_pb2 as pb

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def folder(digits: UInt8Array, tmp_path: Path) -> Path:
    """Three pictures, one in a subfolder, and a file that is not a picture."""
    path = tmp_path / "pictures"
    (path / "deeper").mkdir(parents=True)
    for name, image in zip(("0.png", "1.BMP", "deeper/2.png"), digits, strict=False):
        to_pil(image).save(path / name)
    (path / "notes.txt").write_text("not a picture")
    return path


def test_a_folder_is_scored_as_a_table(
    folder: Path, target: list[str], embedded: Any, digits: UInt8Array, capsys: Printed
) -> None:
    assert main(["score", str(folder), *target]) == 0
    printed = capsys.readouterr()
    header, *lines = printed.out.splitlines()
    assert header.split() == ["file", "bits/dim", "percentile", "log-likelihood"]
    scores = embedded.score(digits[:3])
    for line, name, row in zip(lines, ("0.png", "1.BMP", "deeper/2.png"), range(3), strict=True):
        file, bits, percentile, nats = line.split()
        assert file == str(folder / name)
        assert float(bits) == pytest.approx(scores.bits_per_dim[row], abs=0.00051)
        assert float(percentile) == pytest.approx(scores.percentile[row], abs=0.051)
        assert float(nats) == pytest.approx(scores.log_likelihood[row], abs=0.051)
    assert len({len(line) for line in (header, *lines)}) == 1
    assert printed.err == f"glowserve: folder {folder}: left out 1 .txt\n"


def test_a_line_of_json_for_each_file_has_every_score(
    folder: Path, target: list[str], embedded: Any, digits: UInt8Array, capsys: Printed
) -> None:
    files = [str(folder / "deeper" / "2.png"), str(folder / "0.png")]
    assert main(["score", *files, "--json", "--seed", "5", *target]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    scores = embedded.score(digits[[2, 0]], seed=5)
    assert [row["file"] for row in rows] == files
    for i, row in enumerate(rows):
        assert set(row) == {"file", *COLUMNS}
        assert row["finite"] is True
        assert row["log_likelihood"] == pytest.approx(scores.log_likelihood[i], rel=1e-6)
        assert row["bits_per_dim"] == pytest.approx(scores.bits_per_dim[i], rel=1e-6)
        assert row["percentile"] == pytest.approx(scores.percentile[i])


def test_a_file_that_is_named_twice_is_scored_twice(folder: Path, target: list[str], capsys: Printed) -> None:
    assert main(["score", str(folder / "0.png"), str(folder / "0.png"), "--json", *target]) == 0
    printed = capsys.readouterr()
    first, second = printed.out.splitlines()
    assert first == second
    assert printed.err == ""


def truncate(path: Path) -> None:
    to_pil(np.arange(64, dtype=np.uint8).reshape(8, 8, 1)).save(path)
    path.write_bytes(path.read_bytes()[:-30])


def write_text(path: Path) -> None:
    path.write_text("no picture")


def write_nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate, "the picture is damaged"),
        (write_text, "are not a picture"),
        (write_nothing, "No such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_reported_and_the_others_are_scored(
    folder: Path, target: list[str], spoil: Any, words: str, capsys: Printed
) -> None:
    bad = folder / "bad.png"
    spoil(bad)
    files = [str(folder / "0.png"), str(bad), str(folder / "deeper" / "2.png")]
    assert main(["score", *files, "--json", *target]) == 1
    printed = capsys.readouterr()
    assert [json.loads(line)["file"] for line in printed.out.splitlines()] == [files[0], files[2]]
    report, count = printed.err.splitlines()
    assert report.startswith("glowserve: ")
    assert str(bad) in report
    assert words in report
    assert count == "glowserve: 1 of 3 files could not be scored"


def test_a_refused_picture_is_reported_and_the_others_are_scored(
    folder: Path, target: list[str], capsys: Printed
) -> None:
    Image.new("1", (9000, 8000)).save(folder / "large.png")
    files = [str(folder / "0.png"), str(folder / "large.png"), str(folder / "deeper" / "2.png")]
    assert main(["score", *files, "--json", *target]) == 1
    printed = capsys.readouterr()
    assert [json.loads(line)["file"] for line in printed.out.splitlines()] == [files[0], files[2]]
    report, count = printed.err.splitlines()
    assert report.startswith(f"glowserve: {files[1]}: INVALID_ARGUMENT: ")
    assert "it has 9000 x 8000 pixels" in report
    assert count == "glowserve: 1 of 3 files could not be scored"


def test_a_file_that_cannot_be_read_is_reported_if_it_is_the_only_one(
    folder: Path, target: list[str], capsys: Printed
) -> None:
    (folder / "bad.png").write_text("no picture")
    assert main(["score", str(folder / "bad.png"), *target]) == 1
    assert "1 of 1 file could not be scored" in capsys.readouterr().err


def test_many_files_are_scored_in_order(
    tmp_path: Path, target: list[str], digits: UInt8Array, embedded: Any, capsys: Printed
) -> None:
    for i in range(100):
        to_pil(digits[i]).save(tmp_path / f"{i:03}.png")
    assert main(["score", str(tmp_path), "--json", *target]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["file"]).name for row in rows] == [f"{i:03}.png" for i in range(100)]
    found = [row["log_likelihood"] for row in rows]
    np.testing.assert_allclose(found, embedded.score(digits[:100]).log_likelihood, rtol=1e-6)


def test_a_photograph_of_any_size_is_scored(tmp_path: Path, target: list[str], capsys: Printed) -> None:
    Image.effect_noise((300, 200), 90).convert("RGB").save(tmp_path / "photo.jpg")
    assert main(["score", str(tmp_path / "photo.jpg"), *target]) == 0
    assert "photo.jpg" in capsys.readouterr().out


def test_a_folder_without_pictures_is_named(tmp_path: Path, target: list[str], capsys: Printed) -> None:
    assert main(["score", str(tmp_path), *target]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"glowserve: folder {tmp_path} holds no pictures; looked for ")


def test_what_is_left_out_of_a_folder_is_counted_and_is_no_failure(
    folder: Path, target: list[str], tmp_path: Path, capsys: Printed
) -> None:
    (folder / "deeper").rename(tmp_path / "elsewhere")
    (folder / "deeper").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(".")
    (folder / "album.png").mkdir()
    (folder / "._0.png").write_bytes(b"a resource fork")
    (folder / "0.png").rename(folder / "0")

    assert main(["score", str(folder), "--json", *target]) == 0

    printed = capsys.readouterr()
    files = [json.loads(line)["file"] for line in printed.out.splitlines()]
    assert files == [str(folder / name) for name in ("0", "1.BMP", "deeper/2.png")]
    assert printed.err == (f"glowserve: folder {folder}: left out 1 .txt, 1 hidden, 1 repeated by links\n")


def test_a_subfolder_that_cannot_be_listed_is_named_and_a_failure(
    folder: Path, target: list[str], capsys: Printed
) -> None:
    (folder / "more").symlink_to("nowhere")

    assert main(["score", str(folder), "--json", *target]) == 1

    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3
    assert f"unreadable: {folder}/more (a link: No such file or directory)" in printed.err


def test_names_that_are_not_utf_8_or_not_printable_are_scored_and_escaped(
    folder: Path, target: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "0.png").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    (folder / "1.BMP").rename(folder / "a\n\x1b[2J.bmp")

    assert main(["score", str(folder), *target]) == 0

    printed = capfd.readouterr()
    assert f"{folder}/caf\\udce9.png " in printed.out
    assert f"{folder}/a\\n\\x1b[2J.bmp " in printed.out
    assert len(printed.out.splitlines()) == 4


def test_an_archive_is_named_with_the_command_that_unpacks_it(
    folder: Path, target: list[str], capsys: Printed
) -> None:
    archive = shutil.make_archive(str(folder), "zip", folder)

    assert main(["score", archive, *target]) == 1

    assert f"glowserve: {archive}: " in (error := capsys.readouterr().err)
    assert "it is an archive: unpack it into a folder of its own (`unzip pictures.zip`)" in error


def test_a_model_that_the_server_does_not_have_is_named(
    folder: Path, server: Server, capsys: Printed
) -> None:
    address = f"127.0.0.1:{server.port}"
    assert main(["score", str(folder), "--server", address, "--model", "nobody"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("glowserve: NOT_FOUND: model.name 'nobody' is not served")


@pytest.mark.parametrize("seed", ["-1", str(2**64)])
def test_a_seed_out_of_range_is_named(folder: Path, target: list[str], seed: str, capsys: Printed) -> None:
    assert main(["score", str(folder), "--seed", seed, *target]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"glowserve: seed is {seed}; it must lie in 0 to 2^64 - 1"


class NotFinite:
    """A transport whose model finds every image beyond the range of float32."""

    def score_stream(self, requests: Iterator[pb.ScoreRequest]) -> Iterator[pb.ScoreResponse]:
        for request in requests:
            lost = pb.ImageScore(log_likelihood=-np.inf, bits_per_dim=np.inf, percentile=0, finite=False)
            yield pb.ScoreResponse(scores=[lost] * len(request.images.encoded.data))

    def close(self) -> None:
        """See Transport."""


def test_a_score_that_is_not_finite_is_null_in_json_and_marked_in_the_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    transport: Any = NotFinite()
    monkeypatch.setattr("glowserve.open", lambda _model: glowserve.Client(transport=transport))
    assert main(["score", str(folder / "0.png"), "--model", "any", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["log_likelihood"], row["bits_per_dim"], row["percentile"], row["finite"]) == (
        None,
        None,
        0,
        False,
    )
    assert main(["score", str(folder / "0.png"), "--model", "any"]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("-inf  (not finite)")


def test_further_scores_are_columns_of_the_table_and_keys_of_the_json(
    folder: Path, target: list[str], embedded: Any, digits: UInt8Array, capsys: Printed
) -> None:
    wanted = ["--scores", "anomaly_p_value,log_prior", "--false-alarm-rate", "0.2"]
    scores = embedded.score(digits[:3], scores=["anomaly_p_value", "log_prior"], false_alarm_rate=0.2)
    assert main(["score", str(folder), *wanted, *target]) == 0
    header, *lines, rate = capsys.readouterr().out.splitlines()
    assert header.split()[4:] == ["anomaly_p_value", "anomalous", "log_prior"]
    assert len(lines) == 3
    assert rate == "of images like the calibration images, 20 % are called anomalous"
    for i, line in enumerate(lines):
        p, anomalous, *levels = line.split()[4:]
        assert float(p) == pytest.approx(scores.anomaly_p_value[i], abs=1e-5)
        assert anomalous == ("yes" if scores.anomalous[i] else "no")
        assert [float(level) for level in levels] == pytest.approx(scores.log_prior[i], abs=0.06)
    assert main(["score", str(folder), "--json", *wanted, *target]) == 0
    for i, line in enumerate(capsys.readouterr().out.splitlines()):
        row = json.loads(line)
        assert set(row) == {"file", *COLUMNS, "anomaly_p_value", "anomalous", "log_prior", "false_alarm_rate"}
        assert row["anomaly_p_value"] == pytest.approx(scores.anomaly_p_value[i])
        assert row["false_alarm_rate"] == 0.2


@pytest.mark.parametrize(
    ("wanted", "code", "words"),
    [
        (["--scores", "oddness"], 2, "score 'oddness' is unknown; the scores are log_likelihood, "),
        (["--false-alarm-rate", "0.001"], 1, "takes 999 calibration images"),
        (["--importance-samples", "65"], 1, "must lie in 1 to 64"),
        (["--importance-samples", "-1"], 2, "importance_samples is -1"),
    ],
)
def test_what_no_file_can_be_scored_with_is_said_once(
    folder: Path, target: list[str], wanted: list[str], code: int, words: str, capsys: Printed
) -> None:
    assert main(["score", str(folder), *wanted, *target]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert words in line
