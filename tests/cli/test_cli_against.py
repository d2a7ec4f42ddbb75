"""`glowserve evaluate BUNDLE --against DIR...`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glowserve.cli import main
from glowserve.images import UInt8Array, to_pil
from glowserve.runtime.repository import Bundle
from tests.service.bundles import change_calibration, without_calibration

OLD = Path(__file__).parents[1] / "data" / "0.1.0" / "models" / "digits" / "1"
Printed = pytest.CaptureFixture[str]


@pytest.fixture
def model(repository: Path) -> str:
    return str(repository / "digits")


@pytest.fixture
def inverted(tmp_path: Path, digits: UInt8Array) -> str:
    """A folder of inverted digits."""
    folder = tmp_path / "inverted"
    folder.mkdir()
    for i, image in enumerate(digits[:30]):
        to_pil(255 - image).save(folder / f"{i}.png")
    return str(folder)


@pytest.fixture
def noise(tmp_path: Path, rng: np.random.Generator) -> str:
    """An .npz file of noise."""
    np.savez(tmp_path / "noise.npz", images=rng.integers(0, 256, (20, 8, 8), dtype=np.uint8))
    return str(tmp_path / "noise.npz")


def evaluated(capsys: Printed, *arguments: str) -> Any:
    assert main(["evaluate", *arguments, "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def failure(capsys: Printed, *arguments: str) -> str:
    assert main(["evaluate", *arguments, "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.splitlines()[-1]


def test_json_has_every_figure_with_its_interval(
    model: str, inverted: str, noise: str, capsys: Printed
) -> None:
    found = evaluated(capsys, model, "--against", inverted, noise)
    assert (found["source"], found["data"], found["split"]) == (model, "digits", "test")
    assert (found["images"], found["calibration_images"]) == (179, 90)
    assert [(each["name"], each["data"], each["images"]) for each in found["sets"]] == [
        ("inverted", inverted, 30),
        ("noise", noise, 20),
    ]
    detectors = found["detectors"]
    assert detectors[:2] == ["raw likelihood", "complexity alone"]
    for each in found["sets"]:
        assert list(each["separations"]) == detectors
        for figures in each["separations"].values():
            assert set(figures) == {"auroc", "aupr", "fpr"}
            assert all(0 <= f["low"] <= f["value"] <= f["high"] <= 1 for f in figures.values())
        assert each["separations"]["raw likelihood"]["auroc"]["value"] > 0.95
    assert set(found["summary"]) == set(found["false_alarms"]) == set(detectors)
    for rates in found["false_alarms"].values():
        assert [rate["asked"] for rate in rates] == [0.1, 0.05, 0.01]
        # With 90 calibration images no p-value is 1 % or less.
        assert (rates[2]["measured"], rates[2]["low"], rates[2]["high"]) == (0, 0, 0)


def test_tables_and_plots_show_the_same(
    model: str, inverted: str, noise: str, tmp_path: Path, capsys: Printed
) -> None:
    found = evaluated(capsys, model, "--against", inverted, noise)
    plots = tmp_path / "deep" / "plots"
    arguments = ["evaluate", model, "--against", inverted, noise, "--device", "cpu", "--plots", str(plots)]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == f"{model}: 179 test images of digits, 90 calibration images"
    figure = found["sets"][0]["separations"]["raw likelihood"]["auroc"]
    row = lines[next(i for i, line in enumerate(lines) if line.startswith("inverted (30)")) + 1]
    assert row.startswith("  raw likelihood")
    assert f" {figure['value']:.3f} ({figure['low']:.3f}-{figure['high']:.3f}) " in row
    assert max(map(len, lines)) <= 120
    for name in ("separation.png", "false_alarms.png"):
        with Image.open(plots / name) as picture:
            assert picture.width > 500
        assert str(plots / name) in printed.err


def test_images_bounds_the_test_images_and_each_set(model: str, inverted: str, capsys: Printed) -> None:
    found = evaluated(capsys, model, "--against", inverted, "--images", "7")
    assert (found["images"], found["sets"][0]["images"]) == (7, 7)


def test_sets_of_one_name_are_called_by_their_paths(
    model: str, inverted: str, tmp_path: Path, capsys: Printed
) -> None:
    other = tmp_path / "other" / "inverted"
    other.parent.mkdir()
    other.symlink_to(inverted)
    found = evaluated(capsys, model, "--against", inverted, str(other))
    assert [each["name"] for each in found["sets"]] == [inverted, str(other)]


def test_a_bundle_that_is_calibrated_on_other_images_says_so(
    bundle: Bundle, inverted: str, rng: np.random.Generator, tmp_path: Path, capsys: Printed
) -> None:
    shutil.copytree(bundle.path, tmp_path / "digits" / "1")
    other = str(tmp_path / "other.npz")
    np.savez(other, images=rng.integers(0, 256, (200, 8, 8), dtype=np.uint8))
    assert main(["calibrate", str(tmp_path / "digits"), "--data", other]) == 0
    arguments = ["evaluate", str(tmp_path / "digits"), "--against", inverted, "--images", "9"]
    for further, warned in (([], True), (["--data", other], False)):
        capsys.readouterr()
        assert main([*arguments, *further]) == 0
        warning = (
            f"warning: the bundle is calibrated on images of {other!r}, and the test images are of 'digits'"
        )
        assert (warning in capsys.readouterr().err) == warned


@pytest.mark.parametrize(
    ("lacks", "left_out"),
    [
        ("calibration", "anomaly_p_value, typicality_p_value"),
        ("codec", "bits_per_dim_minus_complexity"),
    ],
)
def test_scores_that_a_bundle_cannot_compute_here_are_left_out(
    bundle: Bundle, lacks: str, left_out: str, inverted: str, tmp_path: Path, capsys: Printed
) -> None:
    version = tmp_path / "digits" / "1"
    if lacks == "calibration":
        without_calibration(bundle.path, version)
    else:
        change_calibration(bundle.path, version, lambda old: replace(old, codec=old.codec + 1))
    arguments = ["evaluate", str(tmp_path / "digits"), "--against", inverted, "--images", "9", "--json"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert f"the bundle lacks the calibration that {left_out} needs" in printed.err
    detectors = json.loads(printed.out)["detectors"]
    assert detectors[:2] == ["raw likelihood", "complexity alone"]
    assert len(detectors) == 5 - len(left_out.split(", "))


def test_of_an_old_split_the_images_that_p_values_compare_with_are_counted(
    inverted: str, tmp_path: Path, capsys: Printed
) -> None:
    shutil.copytree(OLD, tmp_path / "digits" / "1")
    model = str(tmp_path / "digits")
    assert main(["calibrate", model, "--data", "digits"]) == 0
    assert "calibrated on 90 images, with a density of 89 others" in capsys.readouterr().out
    assert evaluated(capsys, model, "--against", inverted, "--images", "9")["calibration_images"] == 90


def test_what_cannot_be_evaluated_is_refused(
    model: str, checkpoint: Path, inverted: str, tmp_path: Path, capsys: Printed
) -> None:
    against = ("--against", inverted)
    assert "is no bundle, and --against measures the scores that a bundle serves" in failure(
        capsys, str(checkpoint), *against
    )
    assert "split is 'validation', and --against measures test images" in failure(
        capsys, model, *against, "--split", "validation"
    )
    assert "importance-samples is 2, and --against measures scores as they are served" in failure(
        capsys, model, *against, "--importance-samples", "2"
    )
    assert failure(capsys, model, *against, str(tmp_path / "nothing")) == (
        f"glowserve: data {str(tmp_path / 'nothing')!r}: there is no such file or folder"
    )
    (tmp_path / "empty").mkdir()
    assert "the folder has no images" in failure(capsys, model, "--against", str(tmp_path / "empty"))
    assert "images is 180, and data 'digits' has 179 test images" in failure(
        capsys, model, *against, "--images", "180"
    )
    assert "--plots draws the results of --against" in failure(capsys, model, "--plots", str(tmp_path))
    (tmp_path / "file").write_text("")
    assert "file" in failure(capsys, model, *against, "--plots", str(tmp_path / "file"))
