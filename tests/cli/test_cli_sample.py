"""`glowserve sample`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glowserve_service.server import Server
from PIL import Image

from glowserve.cli import main
from glowserve.grid import grid
from glowserve.runtime.engine import Engine
from tests.attempts import attempts
from tests.servers import RunServer
from tests.service.wire import wait_for

Printed = pytest.CaptureFixture[str]


def test_samples_are_saved_as_a_grid(
    target: list[str], embedded: Any, tmp_path: Path, capsys: Printed
) -> None:
    out = tmp_path / "grid.png"
    assert (
        main(["sample", "--n", "40", "--seed", "3", "--temperature", "0.7", "--out", str(out), *target]) == 0
    )
    assert capsys.readouterr().out == f"wrote {out}: 40 images with seed 3\n"
    images = embedded.sample(40, seed=3, temperature=0.7).images
    with Image.open(out) as picture:
        scale = picture.width // (7 * 9 + 1)
        assert scale > 1
        expected = grid(images, scale=scale)
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))


def test_samples_are_saved_in_a_folder_as_a_file_each(
    target: list[str], embedded: Any, tmp_path: Path, capsys: Printed
) -> None:
    out = tmp_path / "new" / "folder"
    arguments = ["--n", "40", "--seed", "3", "--temperature", "0.7", "--json", "--out", str(out)]
    assert main(["sample", *arguments, *target]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "out": str(out),
        "n": 40,
        "not_finite": [],
        "seed": 3,
        "model": "digits",
        "version": 1,
    }
    files = sorted(out.iterdir())
    assert [file.name for file in files] == [f"{i:06}.png" for i in range(40)]
    images = [np.asarray(Image.open(file))[:, :, None] for file in files]
    np.testing.assert_array_equal(np.stack(images), embedded.sample(40, seed=3, temperature=0.7).images)


@pytest.mark.parametrize("name", ["samples_t0.7", "v1.0", "run.2024-01-01", "a.txt", ".hidden", "there.png"])
def test_a_folder_may_have_a_dot_in_its_name(repository: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "there.png").mkdir()
    arguments = ["--n", "2", "--temperature", "0.7", "--model", str(repository / "digits")]
    assert main(["sample", "--out", str(tmp_path / name), *arguments]) == 0
    assert sorted(file.name for file in (tmp_path / name).iterdir()) == ["000000.png", "000001.png"]


def test_the_random_seed_is_printed_and_gives_the_same_samples_again(
    target: list[str], tmp_path: Path, capsys: Printed
) -> None:
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    command = ["sample", "--n", "5", "--temperature", "0.7", *target]
    assert main([*command, "--out", str(one), "--json"]) == 0
    seed = json.loads(capsys.readouterr().out)["seed"]
    assert main([*command, "--out", str(other), "--seed", str(seed)]) == 0
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--n", "0", "--out", "x.png"], 2, "--n is 0; it must be 1 or more"),
        (["--n", "-3", "--out", "x.png"], 2, "--n is -3; it must be 1 or more"),
        (["--n", "100001", "--out", "x.png"], 1, "INVALID_ARGUMENT: n is 100001; it must lie in 1 to 100000"),
        (["--out", "x.jpg"], 2, "--out is x.jpg; it must end in .png, or be a folder"),
        (["--out", "x.0.TIFF"], 2, "--out is x.0.TIFF; it must end in .png, or be a folder"),
        (["--out", "x.png", "--temperature", "-1"], 1, "INVALID_ARGUMENT: temperature is -1.0"),
        (["--out", "x.png", "--temperature", "nan"], 1, "INVALID_ARGUMENT: temperature is nan"),
        (
            ["--out", "x.png", "--temperature", "3e38"],
            1,
            "FAILED_PRECONDITION: temperature is 3e+38: not one",
        ),
        (["--out", "x.png", "--seed", "-1"], 2, "seed is -1; it must lie in 0 to 2^64 - 1"),
        (["--out", "file"], 2, "File exists: 'file'"),
        (["--out", "file/folder"], 2, "Not a directory: 'file/folder'"),
        (["--out", "nowhere/x.png"], 2, "there is no folder nowhere"),
    ],
)
def test_wrong_arguments_are_named_and_no_grid_is_written(
    target: list[str],
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Printed,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["sample", *arguments, *target]) == code
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("glowserve: ")
    assert words in line
    assert printed.out == ""
    assert not list(tmp_path.glob("*.png"))


@pytest.fixture(params=["model", "server"])
def explosive(
    request: pytest.FixtureRequest, run_server: RunServer, explosive_repository: Path
) -> Iterator[list[str]]:
    """The flags that select a model whose samples are not finite in about half of the attempts."""
    if request.param == "model":
        yield ["--model", str(explosive_repository / "digits")]
        return
    with run_server(repository=explosive_repository) as server:
        yield ["--server", f"127.0.0.1:{server.port}"]


def test_samples_that_are_not_finite_are_left_out_and_named_and_make_the_exit_code_1(
    explosive: list[str], explosive_engine: Engine, tmp_path: Path, capsys: Printed
) -> None:
    expected = attempts(explosive_engine, 3, 40)
    missing = expected.not_finite
    assert 0 < len(missing) <= 10
    named = ", ".join(map(str, missing))
    command = ["sample", "--n", "40", "--seed", "3", *explosive]
    out = tmp_path / "grid.png"
    assert main([*command, "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"wrote {out}: {40 - len(missing)} images with seed 3\n"
    assert printed.err == (
        f"glowserve: {len(missing)} of 40 samples are not finite and were left out: {named}; lower --temperature, or "
        "train the model longer\n"
    )
    with Image.open(out) as picture:
        assert picture.width > 0
    out = tmp_path / "folder"
    out.mkdir()
    for index in missing[:1] + expected.indices[:1]:
        (out / f"{index:06}.png").write_text("of an earlier call")
    assert main([*command, "--out", str(out), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["n"], result["not_finite"]) == (40 - len(missing), missing)
    # A file has the number of its sample, and no older file is left where there is none.
    assert sorted(file.name for file in out.iterdir()) == [f"{index:06}.png" for index in expected.indices]
    for index in expected.indices:
        with Image.open(out / f"{index:06}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture)[:, :, None], expected.images[index])


@pytest.mark.parametrize("kind", ["model", "server"])
def test_ctrl_c_ends_it_with_exit_code_130(
    server: Server, repository: Path, tmp_path: Path, kind: str
) -> None:
    targets = {"model": str(repository / "digits"), "server": f"127.0.0.1:{server.port}"}
    command = [sys.executable, "-m", "glowserve", "sample", "--n", "100000", "--temperature", "0"]
    command += ["--out", str(tmp_path / "out"), f"--{kind}", targets[kind]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for((tmp_path / "out" / "000100.png").exists)
            process.send_signal(signal.SIGINT)
            printed, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "glowserve: interrupted"
    assert "Traceback" not in errors
    assert printed == ""
    wait_for(lambda: not server.metrics.registry.get_sample_value("glowserve_requests_in_flight"))
