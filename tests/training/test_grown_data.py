"""From data to export while the data changes: an interrupted run goes on with the images that it began with."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.config import RunConfig
from glowserve_training.errors import DataError, RunError
from glowserve_training.presets import run_config
from PIL import Image

from glowserve.cli import main
from tests.training.runs import PLAIN, Interrupt, run, same_weights

SIZES = PLAIN | {"n_bits": 4, "levels": 2, "steps_per_level": 1, "width": 4, "steps": 20, "batch_size": 16}
SIZES["patience"] = 0  # there is nothing to learn of noise
FLAGS = [part for name, n in SIZES.items() for part in (f"--{name.replace('_', '-')}", str(n))]
Printed = pytest.CaptureFixture[str]


@pytest.fixture
def photos(tmp_path: Path, rng: np.random.Generator) -> Path:
    """60 images of noise in two folders; the name of one is not UTF-8."""
    for i in range(60):
        path = tmp_path / "photos" / f"{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    (tmp_path / "photos" / "0" / "2.png").rename(os.fsdecode(bytes(tmp_path) + b"/photos/0/caf\xe9.png"))
    return tmp_path / "photos"


def grow(photos: Path) -> None:
    """Adds 60 images in colour of another size, some of them in a folder that would be a split."""
    for i in range(60):
        path = photos / ("train" if i % 3 == 0 else "0") / f"more{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (i, 100, 200)).save(path)


def config(photos: Path) -> RunConfig:
    return run_config(str(photos), image_size=8, channels=1, **SIZES)


def interrupted(photos: Path, run_dir: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(config(photos), run_dir, [Interrupt(7)])


def test_an_interrupted_run_ends_with_the_same_weights_though_its_folder_grew(
    photos: Path, tmp_path: Path, capfd: Printed
) -> None:
    undisturbed = run(config(photos), tmp_path / "undisturbed")
    interrupted(photos, tmp_path / "run")
    grow(photos)
    capfd.readouterr()

    result = run(config(photos), tmp_path / "run")

    assert same_weights(result, undisturbed)
    told = capfd.readouterr().err
    assert f"data: 60 images in {photos}; left out: 60 added since the run began\n" in told
    assert "resuming from step 6" in told


def test_the_same_command_resumes_though_the_grown_folder_would_give_another_shape(
    photos: Path, tmp_path: Path, capfd: Printed
) -> None:
    interrupted(photos, tmp_path / "run")
    grow(photos)
    (photos / "train").rename(photos / "new")
    assert run_config(str(photos)).model.channels == 3

    command = ["train", "--data", str(photos), "--out", str(tmp_path / "run"), "--device", "cpu", "--json"]
    assert main([*command, *FLAGS]) == 0

    assert json.loads(capfd.readouterr().out)["steps"] == 20


def test_an_interrupted_run_goes_on_with_a_folder_that_has_moved(photos: Path, tmp_path: Path) -> None:
    undisturbed = run(config(photos), tmp_path / "undisturbed")
    interrupted(photos, tmp_path / "run")
    photos.rename(tmp_path / "moved")

    assert same_weights(run(config(tmp_path / "moved"), tmp_path / "run"), undisturbed)
    assert load_checkpoint(tmp_path / "run" / "model.ckpt").data.data == str(tmp_path / "moved")


def test_an_interrupted_run_does_not_go_on_with_other_data(photos: Path, tmp_path: Path) -> None:
    interrupted(photos, tmp_path / "run")

    for path in photos.rglob("*.png"):
        other = tmp_path / "other" / path.relative_to(photos)
        other.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 9).save(other)
    with pytest.raises(RunError, match="a run with other images"):
        run(config(tmp_path / "other"), tmp_path / "run")
    np.savez(tmp_path / "other.npz", images=np.zeros((60, 8, 8), np.uint8))
    with pytest.raises(RunError, match="a run with other images"):
        run(config(tmp_path / "other.npz"), tmp_path / "run")


def test_a_finished_run_is_not_taken_for_one_of_other_data(photos: Path, tmp_path: Path) -> None:
    run(config(photos), tmp_path / "run")
    photos.rename(tmp_path / "moved")

    with pytest.raises(RunError, match=r"other arguments: data\.data was .* and is now .*/moved"):
        run(config(tmp_path / "moved"), tmp_path / "run")


def test_an_interrupted_run_names_the_images_that_are_missing(photos: Path, tmp_path: Path) -> None:
    interrupted(photos, tmp_path / "run")
    (photos / "1" / "17.png").rename(photos / "1" / "renamed.png")

    with pytest.raises(
        DataError,
        match=r"1 of the 60 images that the run began with are missing, such as 1/17\.png; restore them",
    ):
        run(config(photos), tmp_path / "run")


def test_an_interrupted_run_refuses_images_that_have_changed(photos: Path, tmp_path: Path) -> None:
    interrupted(photos, tmp_path / "run")
    for path in photos.rglob("*.png"):
        Image.new("L", (8, 8), 9).save(path)

    with pytest.raises(RunError, match=r"its data has changed: images\.held_out_sha256 was"):
        run(config(photos), tmp_path / "run")


@pytest.mark.parametrize("content", ["", "{}", "[1]", "3"])
def test_a_damaged_list_of_files_is_refused(content: str, photos: Path, tmp_path: Path) -> None:
    interrupted(photos, tmp_path / "run")
    (tmp_path / "run" / "files.json").write_text(content)

    with pytest.raises(RunError, match=r"files\.json is damaged; use another --out"):
        run(config(photos), tmp_path / "run")


def test_a_run_whose_list_was_written_without_its_record_starts_anew(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "files.json").write_text('["gone.png"]')

    assert run(config(photos), tmp_path / "run").exists()


def test_a_finished_run_is_evaluated_and_exported_on_its_held_out_images_whatever_became_of_the_folder(
    photos: Path, tmp_path: Path, capfd: Printed
) -> None:
    checkpoint = str(run(config(photos), tmp_path / "run"))
    evaluate = ["evaluate", checkpoint, "--device", "cpu", "--json"]
    assert main(evaluate) == 0
    before = json.loads(capfd.readouterr().out)
    grow(photos)

    assert main(evaluate) == 0
    grown = capfd.readouterr()
    photos.rename(tmp_path / "moved")
    assert main(evaluate) == 0
    moved = capfd.readouterr()

    assert json.loads(grown.out) == json.loads(moved.out) == before
    assert grown.err == moved.err == ""
    assert main(["export", checkpoint, str(tmp_path / "models" / "photos")]) == 0


def test_a_bundle_warns_when_its_folder_has_grown_and_takes_the_images_that_the_run_kept(
    photos: Path, tmp_path: Path, capfd: Printed
) -> None:
    checkpoint = run(config(photos), tmp_path / "run")
    bundle = tmp_path / "models" / "photos"
    assert main(["export", str(checkpoint), str(bundle)]) == 0
    evaluate = ["evaluate", str(bundle), "--device", "cpu", "--json"]
    capfd.readouterr()
    assert main(evaluate) == 0
    before = capfd.readouterr()
    assert before.err == ""
    Image.new("L", (8, 8), 7).save(photos / "0" / "more.png")

    assert main(evaluate) == 0
    warning = capfd.readouterr().err
    assert "does not yield the images that the bundle's percentiles were computed from" in warning
    assert main([*evaluate, "--data", str(tmp_path / "run" / "held_out.npz")]) == 0
    kept = capfd.readouterr()

    assert kept.err == ""
    assert json.loads(kept.out)["bits_per_dim"] == json.loads(before.out)["bits_per_dim"]
    photos.rename(tmp_path / "moved")
    assert main(evaluate) == 2
    assert "If the data has moved, give its new path with --data" in capfd.readouterr().err


def test_where_checkpoint_and_data_were_moved_apart_export_and_evaluate_name_data(
    photos: Path, tmp_path: Path, capfd: Printed
) -> None:
    checkpoint = run(config(photos), tmp_path / "run").rename(tmp_path / "moved.ckpt")
    photos.rename(tmp_path / "elsewhere")
    commands = (
        ["export", str(checkpoint), str(tmp_path / "models" / "photos")],
        ["evaluate", str(checkpoint), "--device", "cpu"],
    )

    for command in commands:
        assert main(command) == 2
        error = capfd.readouterr().err
        assert "Looked there for the 12 images that were held out in training" in error
        assert "give its new path with --data" in error
        assert main([*command, "--data", str(tmp_path / "elsewhere")]) == 0
        assert "images that the bundle's percentiles" not in capfd.readouterr().err
