"""`glowserve manipulate`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import glowserve
from glowserve.cli import main
from glowserve.grid import grid
from glowserve.images import UInt8Array, to_pil

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def picture(digits: UInt8Array, tmp_path: Path) -> str:
    """A file of a digit."""
    to_pil(digits[0]).save(tmp_path / "in.png")
    return str(tmp_path / "in.png")


@pytest.mark.parametrize(
    ("flags", "strengths", "words"),
    [
        (
            ["--strengths", "-2:2:5"],
            [-2, -1, 0, 1, 2],
            "5 images from {} along bright, strengths -2, -1, 0, 1, 2",
        ),
        (["--strengths", "-.5,1.5"], [-0.5, 1.5], "2 images from {} along bright, strengths -0.5, 1.5"),
        (["--strengths", "1"], [1], "1 image from {} along bright, strengths 1"),
        ([], [-2, -1, 0, 1, 2], "5 images from {} along bright, strengths -2, -1, 0, 1, 2"),
    ],
)
def test_the_images_are_saved_side_by_side(
    picture: str,
    attributed_repository: Path,
    digits: UInt8Array,
    tmp_path: Path,
    capsys: Printed,
    flags: list[str],
    strengths: list[float],
    words: str,
) -> None:
    model, out = attributed_repository / "digits", tmp_path / "strip.png"
    arguments = ["--model", str(model), "--attribute", "bright", "--out", str(out)]
    assert main(["manipulate", picture, *flags, *arguments]) == 0
    assert capsys.readouterr().out == f"wrote {out}: {words.format(picture)}\n"
    images = glowserve.open(model).manipulate(digits[0], "bright", strengths)
    with Image.open(out) as strip:
        scale = strip.width // (len(images) * 9 + 1)
        assert scale > 1
        np.testing.assert_array_equal(np.asarray(strip), np.asarray(grid(images, len(images), scale=scale)))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            ["--strengths", "-2:2"],
            2,
            "--strengths is -2:2; give START:STOP:COUNT, such as -2:2:5, or numbers",
        ),
        (["--strengths", "0:1:2.5"], 2, "--strengths is 0:1:2.5; give START:STOP:COUNT"),
        (["--strengths", "1,nan"], 2, "--strengths is 1,nan; give"),
        (["--strengths", ""], 2, "--strengths is ; give"),
        (["--strengths", "0:1:0"], 2, "COUNT must lie in 1 to 4096"),
        (["--strengths", "0:1:1000000000"], 2, "COUNT must lie in 1 to 4096"),
        (["--strengths", "0:1:257"], 1, "INVALID_ARGUMENT: strengths has 257 values; it must have 1 to 256"),
        (["--attribute", "blond"], 1, "attributes[1] is 'blond'; the attributes are bright, top"),
        (["--out", "x.jpg"], 2, "--out is x.jpg; it must end in .png"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(
    picture: str,
    attributed_repository: Path,
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Printed,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--model", str(attributed_repository / "digits"), "--attribute", "bright", "--out", "x.png"]
    assert main(["manipulate", picture, *model, *arguments]) == code
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert words in line
    assert printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


def test_a_model_lists_its_attributes_and_how_well_they_separate(
    attributed_repository: Path, capsys: Printed
) -> None:
    model = str(attributed_repository / "digits")
    assert main(["models", "--model", model]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "  attributes: bright, top"
    assert main(["inspect", model]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    assert lines == [["attribute", "separated"], ["bright", "90.0%"], ["top", "80.0%"]]
    assert main(["verify", model, "--device", "cpu"]) == 0
