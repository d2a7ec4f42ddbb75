"""`glowserve interpolate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glowserve.cli import main
from glowserve.grid import grid
from glowserve.images import UInt8Array, to_pil

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def pictures(digits: UInt8Array, tmp_path: Path) -> list[str]:
    """Two files of digits."""
    files = [tmp_path / "a.png", tmp_path / "b.bmp"]
    for file, image in zip(files, digits, strict=False):
        to_pil(image).save(file)
    return [str(file) for file in files]


@pytest.mark.parametrize(("flags", "steps"), [([], 8), (["--steps", "40"], 40)])
def test_the_images_are_saved_side_by_side(
    pictures: list[str],
    target: list[str],
    embedded: Any,
    digits: UInt8Array,
    tmp_path: Path,
    capsys: Printed,
    flags: list[str],
    steps: int,
) -> None:
    out = tmp_path / "strip.png"
    assert main(["interpolate", *pictures, "--out", str(out), *flags, *target]) == 0
    first, last = pictures
    assert capsys.readouterr().out == f"wrote {out}: {steps} images from {first} to {last}\n"
    images = embedded.interpolate(digits[0], digits[1], steps=steps)
    with Image.open(out) as picture:
        scale = picture.width // (steps * 9 + 1)
        assert scale > 1
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(grid(images, steps, scale=scale)))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--out", "x.png", "--steps", "1"], 2, "--steps is 1; it must be 2 or more"),
        (["--out", "x.png", "--steps", "257"], 1, "INVALID_ARGUMENT: steps is 257; it must lie in 2 to 256"),
        (["--out", "x.jpg"], 2, "--out is x.jpg; it must end in .png"),
        (["--out", "nowhere/x.png"], 2, "there is no folder nowhere"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(
    pictures: list[str],
    target: list[str],
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Printed,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["interpolate", *pictures, *arguments, *target]) == code
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("glowserve: ")
    assert words in line
    assert printed.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.bmp"]


def test_a_file_that_is_no_picture_is_named(
    pictures: list[str], target: list[str], tmp_path: Path, capsys: Printed
) -> None:
    out = ["--out", str(tmp_path / "strip.png")]
    Path(pictures[1]).write_text("no picture")
    assert main(["interpolate", *pictures, *out, *target]) == 1
    assert capsys.readouterr().err.startswith(f"glowserve: {pictures[1]}: 10 bytes are not a picture")
    assert main(["interpolate", pictures[0], "nowhere.png", *out, *target]) == 2
    assert "nowhere.png" in capsys.readouterr().err
