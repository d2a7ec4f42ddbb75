"""`glowserve attributes`: the next version of a bundle has the same graphs, and directions of labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import glowserve
from glowserve.cli import main
from glowserve.images import UInt8Array, to_pil
from glowserve.runtime.attributes import Attributes, bundle_attributes
from glowserve.runtime.repository import ATTRIBUTES, Bundle, newest_bundle, open_bundle
from tests.service.bundles import with_attributes

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def model(bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the model, with version 1."""
    shutil.copytree(bundle.path, tmp_path / "digits" / "1")
    return tmp_path / "digits"


@pytest.fixture(scope="module")
def everything() -> tuple[UInt8Array, np.ndarray]:
    """All digits, uint8 [1797, 8, 8, 1], and which each is."""
    from glowserve_training.data.labelled import open_labelled

    labelled = open_labelled("digits")
    images = labelled.source["train"]
    arrays = np.stack([np.asarray(images[i])[..., None] for i in range(len(images))])
    return arrays, labelled.columns[0].codes[images]


def saved(path: Path, **arrays: Any) -> str:
    np.savez(path / "labelled.npz", **arrays)
    return str(path / "labelled.npz")


def test_each_digit_gets_a_direction_that_tells_it_from_the_others(model: Path, capsys: Printed) -> None:
    assert main(["attributes", str(model), "--data", "digits", "--device", "cpu", "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["bundle"], result["version"]) == (str(model / "2"), 2)
    assert [each["name"] for each in result["attributes"]] == [f"digit={i}" for i in range(10)]
    for each in result["attributes"]:
        assert each["separated"] > 0.8
        assert each["having"] + each["lacking"] == 1439
        assert each["held_out_having"] + each["held_out_lacking"] == 358
    assert "warning" not in printed.err


def test_a_direction_is_the_difference_of_the_mean_latents(
    model: Path, everything: tuple[UInt8Array, np.ndarray], tmp_path: Path
) -> None:
    images, _ = everything
    few = {"train_images": images[:300], "test_images": images[300:500], "validation_images": images[500:600]}
    ink = images.sum(axis=(1, 2, 3), dtype=np.int64)
    thick = (ink > np.median(ink)).astype(np.int64)
    own = {"train_thick": thick[:300], "test_thick": thick[300:500], "validation_thick": thick[500:600]}
    data = saved(tmp_path, **few, **own)
    assert main(["attributes", str(model), "--data", data, "--label-column", "thick"]) == 0
    found = bundle_attributes(newest_bundle(model))
    assert found.names == ("thick",)
    with glowserve.open(model, device="cpu") as client:
        latents = client.encode(images[:600]).latents.astype(np.float64)
    having, lacking = (latents[:300][thick[:300] == label].mean(axis=0) for label in (1, 0))
    np.testing.assert_allclose(found.directions[0], having - lacking, atol=1e-5)
    beyond = (latents[300:] - (having + lacking) / 2) @ (having - lacking) > 0
    shares = [(beyond == label)[thick[300:600] == label].mean() for label in (1, 0)]
    assert found.separated[0] == pytest.approx(np.mean(shares), abs=1e-6)
    assert found.separated[0] > 0.75


def test_the_next_version_keeps_all_other_files_and_calibrating_it_keeps_the_attributes(
    bundle: Bundle, tmp_path: Path
) -> None:
    model = tmp_path / "digits"
    stale = Attributes(("stale",), np.ones((1, 64), np.float32), np.ones(1, np.float32))
    with_attributes(bundle.path, model / "1", stale)
    assert main(["attributes", str(model), "--data", "digits"]) == 0
    renewed = open_bundle(model / "2")
    for file in bundle.manifest.files:
        assert renewed.read(file.name) == bundle.read(file.name)
    assert "stale" not in bundle_attributes(renewed).names
    assert main(["calibrate", str(model), "--data", "digits"]) == 0
    assert open_bundle(model / "3").read(ATTRIBUTES) == renewed.read(ATTRIBUTES)
    assert sorted(path.name for path in model.iterdir()) == ["1", "2", "3"]


def test_a_folder_of_pictures_with_two_labels_moves_pictures(
    model: Path, everything: tuple[UInt8Array, np.ndarray], tmp_path: Path, capsys: Printed
) -> None:
    images, _ = everything
    folder = tmp_path / "pictures"
    folder.mkdir()
    ink = images[:400].sum(axis=(1, 2, 3), dtype=np.int64)
    rows = ["file,bold,luck"]
    luck = np.random.default_rng(0).integers(0, 2, 400)
    for i, image in enumerate(images[:400]):
        to_pil(image).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{'yes' if ink[i] > np.median(ink) else 'no'},{luck[i]}")
    (folder / "labels.csv").write_text("\n".join(rows))
    assert main(["attributes", str(model), "--data", str(folder)]) == 0
    printed = capsys.readouterr()
    header, bold, chance, explained, written = printed.out.splitlines()
    assert explained.startswith("separated: ")
    assert header.split()[:4] == ["attribute", "with", "without", "separated"]
    assert bold.split()[0] == "bold"
    assert chance.split()[0] == "luck"
    assert written == f"wrote {model / '2'}"
    (warning,) = [line for line in printed.err.splitlines() if line.startswith("warning")]
    assert warning.startswith("warning: luck separates ")
    assert "no more than chance" in warning
    with glowserve.open(model, device="cpu") as client:
        moved = client.manipulate(folder / "0.png", "bold", [-1, 1])
    assert moved[0].sum() < moved[1].sum()


def test_a_label_of_too_few_images_is_left_out_and_none_at_all_writes_nothing(
    model: Path, everything: tuple[UInt8Array, np.ndarray], tmp_path: Path, capsys: Printed
) -> None:
    images, digit = everything
    rare = np.array(["some", "other"])[digit[:100] % 2].astype("U8")
    rare[0] = "rare"
    assert main(["attributes", str(model), "--data", saved(tmp_path, images=images[:100], labels=rare)]) == 0
    printed = capsys.readouterr()
    assert "warning: labels=rare is left out: " in printed.err
    assert bundle_attributes(newest_bundle(model)).names == ("labels=other", "labels=some")
    one = np.zeros(100, np.int64)
    one[3] = 1
    assert main(["attributes", str(model), "--data", saved(tmp_path, images=images[:100], labels=one)]) == 1
    assert "no label has enough images: a direction takes two of each" in capsys.readouterr().err
    assert sorted(path.name for path in model.iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            ["--data", "digits", "--label-column", "age"],
            2,
            "has no column of labels 'age'; its columns are 'digit'",
        ),
        (["--data", "./nowhere"], 2, "there is no such file or folder"),
    ],
)
def test_data_without_labels_leaves_no_version(
    model: Path, arguments: list[str], code: int, words: str, capsys: Printed
) -> None:
    assert main(["attributes", str(model), *arguments]) == code
    assert words in capsys.readouterr().err
    assert [path.name for path in model.iterdir()] == ["1"]


def test_more_attributes_than_a_bundle_may_have_are_refused(
    model: Path, everything: tuple[UInt8Array, np.ndarray], tmp_path: Path, capsys: Printed
) -> None:
    images, _ = everything
    data = saved(tmp_path, images=images[:600], labels=np.arange(600) // 2)
    assert main(["attributes", str(model), "--data", data]) == 1
    assert "the labels make 300 attributes of 64 values, and a bundle may have 256" in capsys.readouterr().err
