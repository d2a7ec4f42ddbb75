"""`glowserve score --as-set`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glowserve.cli import main
from glowserve.images import UInt8Array, to_pil
from tests.service.bundles import without_calibration

Printed = pytest.CaptureFixture[str]


def save(images: UInt8Array, folder: Path) -> Path:
    folder.mkdir()
    for i, image in enumerate(images):
        to_pil(image).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture
def good(digits: UInt8Array, tmp_path: Path) -> Path:
    return save(digits[:70], tmp_path / "good")


@pytest.fixture
def inverted(digits: UInt8Array, tmp_path: Path) -> Path:
    return save(255 - digits[:30], tmp_path / "inverted")


def test_a_verdict_is_three_lines(
    good: Path, inverted: Path, target: list[str], embedded: Any, digits: UInt8Array, capsys: Printed
) -> None:
    assert main(["score", str(good), "--as-set", *target]) == 0
    verdict, features, single = capsys.readouterr().out.splitlines()
    found = embedded.score_set(digits[:70])
    n = found.calibration_images
    assert verdict.startswith(
        f"70 images do not differ from {n} calibration images at a false-alarm rate of 0.01: p = "
    )
    assert float(verdict.rpartition(" ")[2]) == pytest.approx(found.p_value, abs=0.01)
    assert features.count("spread x") == len(found.features)
    assert single.startswith(f"mean {found.bits_per_dim:.3f} bits/dim; ")

    assert main(["score", str(inverted), "--as-set", *target]) == 0
    verdict, *_ = capsys.readouterr().out.splitlines()
    assert verdict == (
        f"30 images differ from {n} calibration images at a false-alarm rate of 0.01: p = 0.0001, the smallest that is "
        "possible"
    )


def test_json_has_every_number(
    good: Path, target: list[str], embedded: Any, digits: UInt8Array, capsys: Printed
) -> None:
    assert main(["score", str(good), "--as-set", "--json", "--false-alarm-rate", "0.002", *target]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found, expected = json.loads(line), embedded.score_set(digits[:70])
    assert (found["n"], found["model"], found["version"]) == (70, "digits", 1)
    assert found["p_value"] == pytest.approx(expected.p_value, abs=0.01)
    assert (found["set_false_alarm_rate"], found["differs"]) == (0.002, False)
    assert [each["name"] for each in found["features"]] == [each.name for each in expected.features]


@pytest.mark.parametrize(("folder", "code"), [("good", 0), ("inverted", 3)])
def test_a_script_learns_of_a_set_that_differs(
    folder: str, code: int, target: list[str], request: pytest.FixtureRequest, capsys: Printed
) -> None:
    files = str(request.getfixturevalue(folder))
    assert main(["score", files, "--as-set", "--fail-on-anomaly", *target]) == code
    assert main(["score", files, "--as-set", *target]) == 0


def test_pictures_are_prepared_as_the_service_prepares_them(
    target: list[str], embedded: Any, tmp_path: Path, capsys: Printed
) -> None:
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (30, 41, 4), np.uint8)).save(tmp_path / f"{i}.png")
    assert main(["score", str(tmp_path), "--as-set", "--json", *target]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = embedded.score(sorted(tmp_path.glob("*.png"))).bits_per_dim.mean()
    assert found["bits_per_dim"] == pytest.approx(expected, rel=1e-5)


def test_files_that_cannot_be_scored_are_reported_and_left_out(
    good: Path, target: list[str], capsys: Printed
) -> None:
    (good / "a.png").write_text("no picture")
    (good / "b.png").write_bytes((good / "000.png").read_bytes()[:-30])
    Image.new("1", (9000, 8000)).save(good / "c.png")
    (good / "notes.txt").write_text("left out, too")
    assert main(["score", str(good), "--as-set", *target]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("70 images do not differ")
    reports = printed.err.splitlines()
    for name, words in (
        ("a.png", "10 bytes are not a picture"),
        ("b.png", "the picture is damaged"),
        ("c.png", "it has 9000 x 8000 pixels"),
    ):
        (report,) = [line for line in reports if line.startswith(f"glowserve: {good / name}: ")]
        assert words in report
    assert f"glowserve: folder {good}: left out 1 .txt" in reports
    assert "glowserve: 3 of 73 files could not be scored" in reports


def test_a_set_of_which_one_picture_can_be_read_is_none(
    digits: UInt8Array, tmp_path: Path, target: list[str], capsys: Printed
) -> None:
    folder = save(digits[:1], tmp_path / "one")
    (folder / "bad.png").write_text("no picture")
    assert main(["score", str(folder), "--as-set", *target]) == 1
    assert "glowserve: 1 of 2 files can be read; a set takes 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out", "scores.csv"], "--as-set goes without --out"),
        (["--worst", "3"], "--as-set goes without --worst"),
        (["--engine", "ray"], "--as-set goes without --engine"),
        (["--scores", "anomalous"], "--as-set goes without --scores"),
        (["--seed", "0"], "--as-set goes without --seed"),
        (["--importance-samples", "2"], "--as-set goes without --importance-samples"),
        (["--false-alarm-rate", "0"], "--false-alarm-rate is 0; of a set it must lie in 0.0001 to 1"),
        (["--false-alarm-rate", "nan"], "--false-alarm-rate is nan"),
        (["--false-alarm-rate", "1e-5"], "--false-alarm-rate is 1e-05"),
    ],
)
def test_flags_that_make_no_sense_for_a_set_are_refused(
    good: Path, target: list[str], flags: list[str], words: str, capsys: Printed
) -> None:
    assert main(["score", str(good), "--as-set", *flags, *target]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err


def test_a_rate_that_so_few_images_do_not_permit_is_refused(
    digits: UInt8Array, tmp_path: Path, target: list[str], capsys: Printed
) -> None:
    """Two images and n calibration images can be exchanged in (n + 2) (n + 1) / 2 ways."""
    folder = save(digits[:2], tmp_path / "two")
    assert main(["score", str(folder), "--as-set", "--false-alarm-rate", "0.0001", *target]) == 2
    assert "permit 0.000" in capsys.readouterr().err
    assert main(["score", str(folder), "--as-set", *target]) == 0


def test_a_bundle_without_a_calibration_names_the_command_that_adds_it(
    good: Path, repository: Path, tmp_path: Path, capsys: Printed
) -> None:
    without_calibration(repository / "digits" / "1", tmp_path / "digits" / "1")
    assert main(["score", str(good), "--as-set", "--model", str(tmp_path / "digits")]) == 1
    assert "`glowserve calibrate REPOSITORY/digits --data DATA`" in capsys.readouterr().err
