"""`glowserve evaluate`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glowserve_training.checkpoint import load_checkpoint, save_checkpoint

from glowserve.cli import main
from glowserve.images import UInt8Array

Printed = pytest.CaptureFixture[str]

OLD = Path(__file__).parents[1] / "data" / "0.1.0"
KEYS = {
    "source",
    "data",
    "split",
    "images",
    "importance_samples",
    "bits_per_dim",
    "standard_error",
    "levels",
    "constant_bits_per_dim",
    "round_trip",
    "non_finite",
}


@pytest.fixture(params=["checkpoint", "version", "model"])
def source(request: pytest.FixtureRequest, checkpoint: Path, repository: Path) -> str:
    """The model, in each way to name it."""
    model = repository / "digits"
    return str({"checkpoint": checkpoint, "version": model / "1", "model": model}[request.param])


def evaluated(capsys: Printed, *arguments: str) -> Any:
    assert main(["evaluate", *arguments, "--device", "cpu", "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def failure(capsys: Printed, *arguments: str) -> str:
    """The error message of a command that cannot begin."""
    assert main(["evaluate", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


def test_json_is_one_object(source: str, checkpoint: Path, capsys: Printed) -> None:
    found = evaluated(capsys, source)
    assert set(found) == KEYS
    assert found["source"] == source
    assert (found["data"], found["split"], found["images"]) == ("digits", "test", 179)
    assert (found["importance_samples"], found["non_finite"]) == (1, 0)
    metrics = load_checkpoint(checkpoint).training.metrics
    assert found["bits_per_dim"] == pytest.approx(metrics["test_bits_per_dim"], abs=1e-4)
    assert 0 < found["standard_error"] < 1
    assert [level.pop("level") for level in found["levels"]] == [1, 2]
    assert all(set(level) == {"log_prior_bits_per_dim", "log_det_bits_per_dim"} for level in found["levels"])
    terms = sum(sum(level.values()) for level in found["levels"]) + found["constant_bits_per_dim"]
    assert terms == pytest.approx(found["bits_per_dim"], abs=1e-9)
    assert set(found["round_trip"]) == {"images_exact", "values_changed", "largest_error"}
    assert (found["round_trip"]["images_exact"], found["round_trip"]["values_changed"]) == (179, 0)


def test_split_selects_the_validation_images(source: str, checkpoint: Path, capsys: Printed) -> None:
    found = evaluated(capsys, source, "--split", "validation")
    metrics = load_checkpoint(checkpoint).training.metrics
    assert found["split"] == "validation"
    assert found["bits_per_dim"] == pytest.approx(metrics["validation_bits_per_dim"], abs=1e-4)


def test_the_images_that_percentiles_come_from_are_a_split_of_their_own(source: str, capsys: Printed) -> None:
    sizes = {
        split: evaluated(capsys, source, "--split", split)["images"]
        for split in ("validation", "calibration", "test")
    }
    assert sizes == {"validation": 89, "calibration": 90, "test": 179}


@pytest.mark.parametrize("name", ["model.ckpt", "models/digits"])
def test_a_model_of_version_010_is_measured_on_the_images_that_it_held_out(
    name: str, capsys: Printed
) -> None:
    sizes = {
        split: evaluated(capsys, str(OLD / name), "--split", split)["images"]
        for split in ("validation", "test")
    }
    assert sizes == {"validation": 179, "test": 179}
    assert failure(capsys, str(OLD / name), "--split", "calibration") == (
        "glowserve: no calibration images of data 'digits' were held out, as in runs of version 0.1.0; give --split "
        "validation"
    )


def test_a_checkpoint_and_its_bundle_agree(checkpoint: Path, repository: Path, capsys: Printed) -> None:
    flags = ("--images", "100", "--importance-samples", "4")
    ours, theirs = (evaluated(capsys, str(path), *flags) for path in (checkpoint, repository / "digits"))
    assert ours["images"] == theirs["images"] == 100
    assert ours["importance_samples"] == theirs["importance_samples"] == 4
    assert ours["bits_per_dim"] == pytest.approx(theirs["bits_per_dim"], abs=1e-4)
    assert ours["bits_per_dim"] < evaluated(capsys, str(checkpoint), "--images", "100")["bits_per_dim"]


def test_without_json_a_table_is_printed(source: str, capsys: Printed) -> None:
    found = evaluated(capsys, source, "--importance-samples", "2")
    assert main(["evaluate", source, "--device", "cpu", "--importance-samples", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    first, _, *lines = printed.out.splitlines()
    assert first == f"{source} on 179 test images of digits"
    rows = {line[:16].strip(): line[16:] for line in lines if line}
    assert rows["standard error"] == f"{found['standard_error']:.4f}"
    assert rows["noise"] == "2 draws for each image"
    assert rows["not finite"] == "0 of 179 images"
    assert rows["round trip"] == "179 of 179 images exact, 0 values changed"
    for level in found["levels"]:
        figures = [level["log_prior_bits_per_dim"], level["log_det_bits_per_dim"]]
        assert [float(text) for text in rows[f"level {level['level']}"].split()] == pytest.approx(
            figures, abs=6e-5
        )
    assert f"bits/dim        {found['bits_per_dim']:.4f}" in lines
    table = lines[lines.index("") + 1 :]
    assert len({len(line) for line in table}) == 1
    assert table[0].split() == ["bits/dim", "log", "prior", "log", "det"]


def test_one_image_has_no_standard_error(source: str, capsys: Printed) -> None:
    found = evaluated(capsys, source, "--images", "1")
    assert found["images"] == 1
    assert found["standard_error"] is None


def test_other_data_is_measured_with_a_warning(
    checkpoint: Path, repository: Path, tmp_path: Path, digits: UInt8Array, capsys: Printed
) -> None:
    data = str(tmp_path / "others.npz")
    np.savez(data, images=digits[:, ::-1])
    flags = ("--data", data, "--device", "cpu", "--json")
    assert main(["evaluate", str(checkpoint), *flags]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith(
        f"glowserve: warning: {data!r} does not yield the images that were held out"
    )
    ours = json.loads(printed.out)
    assert main(["evaluate", str(repository / "digits"), *flags]) == 0
    theirs = json.loads(capsys.readouterr().out)
    assert ours["data"] == theirs["data"] == data
    assert ours["images"] == theirs["images"] == 44
    assert ours["bits_per_dim"] == pytest.approx(theirs["bits_per_dim"], abs=1e-4)


def nothing(path: Path) -> None:
    pass


def folder(path: Path) -> None:
    path.mkdir()


def text(path: Path) -> None:
    path.write_text("no checkpoint")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (nothing, "does not exist"),
        (folder, "is neither a checkpoint nor a bundle"),
        (text, "is neither a checkpoint nor a bundle"),
    ],
)
def test_a_path_that_cannot_be_evaluated_is_refused(
    make: Callable[[Path], None], words: str, tmp_path: Path, capsys: Printed
) -> None:
    path = tmp_path / "thing"
    make(path)
    assert failure(capsys, str(path)) == (
        f"glowserve: {path} {words}; give RUN_DIR/model.ckpt, which `glowserve train` writes, or "
        "REPOSITORY/MODEL or REPOSITORY/MODEL/VERSION, which `glowserve export` writes"
    )


def test_a_repository_is_refused(repository: Path, capsys: Printed) -> None:
    assert "is neither a checkpoint nor a bundle; give " in failure(capsys, str(repository))


def test_a_damaged_checkpoint_or_bundle_is_refused(
    checkpoint: Path, repository: Path, tmp_path: Path, capsys: Printed
) -> None:
    damaged = tmp_path / "model.ckpt"
    damaged.write_bytes(checkpoint.read_bytes()[:-100])
    assert failure(capsys, str(damaged)).startswith(
        f"glowserve: checkpoint {damaged} cannot be read: it is damaged"
    )
    folder = tmp_path / "digits" / "1"
    shutil.copytree(repository / "digits" / "1", folder)
    (folder / "forward.onnx").write_bytes(b"no graph")
    assert "forward.onnx is not the file that was exported" in failure(capsys, str(folder))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--importance-samples", "0"], "importance-samples is 0; it must be 1 or more"),
        (["--images", "0"], "images is 0; it must be 1 or more"),
        (
            ["--images", "180"],
            "images is 180, and data 'digits' has 179 test images; give at most 179, or leave --images out",
        ),
        (["--data", "/no/such/folder"], "data '/no/such/folder': there is no such file or folder"),
    ],
)
def test_an_invalid_value_is_refused(flags: list[str], words: str, source: str, capsys: Printed) -> None:
    assert failure(capsys, source, *flags, "--device", "cpu") == f"glowserve: {words}"


def test_cuda_without_a_gpu_is_refused(source: str, capsys: Printed) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert failure(capsys, source, "--device", "cuda").startswith("glowserve: device is 'cuda', and ")


@pytest.fixture
def diverged(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint whose likelihoods overflow."""
    loaded = load_checkpoint(checkpoint)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if name.startswith("levels.0.steps.0.actnorm"):
                parameter.fill_(1e30)
    save_checkpoint(loaded, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


def test_likelihoods_that_are_not_finite_are_reported_and_make_the_exit_code_1(
    diverged: Path, capsys: Printed
) -> None:
    assert main(["evaluate", str(diverged), "--device", "cpu", "--images", "20"]) == 1
    printed = capsys.readouterr()
    assert "bits/dim        inf\n" in printed.out
    assert "not finite      20 of 20 images\n" in printed.out
    assert printed.err.startswith("glowserve: 20 of 20 images have no finite likelihood")
    assert main(["evaluate", str(diverged), "--device", "cpu", "--images", "20", "--json"]) == 1
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (found["bits_per_dim"], found["standard_error"], found["non_finite"]) == (None, None, 20)
