"""A run directory belongs to one configuration, one set of images and one process."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from glowserve_training.errors import RunError

from tests.training.runs import Interrupt, TinyRun, Uninterrupted, run


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 21}, "steps was 20 and is now 21"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"batch_size": 17}, "batch_size was 16 and is now 17"),
        ({"max_rollbacks": 6}, "max_rollbacks was 5 and is now 6"),
        ({"width": 5}, r"model\.width was 4 and is now 5"),
        ({"coupling": "additive"}, r"model\.coupling was affine and is now additive"),
        ({"split_seed": 4}, r"data\.split_seed was 0 and is now 4"),
        ({"width": 5, "seed": 1}, r"model\.width was 4 and is now 5; seed was 0 and is now 1"),
    ],
)
def test_other_arguments_in_the_same_directory_are_refused_by_name(
    changes: dict[str, object], sentence: str, uninterrupted: Uninterrupted, tiny_run: TinyRun
) -> None:
    with pytest.raises(
        RunError, match=f"has a run with other arguments: {sentence}. Use the same arguments and images"
    ):
        run(tiny_run(**changes), uninterrupted.result.parent)


def test_an_interrupted_run_does_not_resume_with_other_arguments(tiny_run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tiny_run(), tmp_path, [Interrupt(5)])

    with pytest.raises(RunError, match=r"learning_rate was 0\.004 and is now 0\.1"):
        run(tiny_run(learning_rate=0.1), tmp_path)


def test_an_interrupted_run_does_not_resume_with_other_images(tmp_path: Path, tiny_run: TinyRun) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", images=rng.integers(0, 256, (100, 8, 8, 1), dtype=np.uint8))
    config = tiny_run()
    config = replace(config, data=replace(config.data, data=str(tmp_path / "a.npz")))
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", [Interrupt(1)])
    np.savez(tmp_path / "a.npz", images=rng.integers(0, 256, (130, 8, 8, 1), dtype=np.uint8))

    with pytest.raises(
        RunError, match=r"its data has changed: images\.held_out_sha256 was .* images\.train was 80"
    ):
        run(config, tmp_path / "run")


@pytest.mark.parametrize("content", ["{", "[]", "", "3"])
def test_a_damaged_record_is_refused(content: str, tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)

    with pytest.raises(RunError, match=r"run\.json is damaged; use another --out"):
        run(tiny_run(), tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[
            ("model", {}),
            ("model", {"image_size": "wide", "channels": 1}),
            ("model", 3),
            ("data", {}),
            ("data", None),
        ],
        *[("steps", -1), ("max_returns", None), ("extensions", 7), ("extensions", [{}]), ("later", 1)],
        *[("finished", 3), ("finished", {"steps": 20})],
    ],
)
def test_a_record_with_missing_or_wrong_content_is_refused(
    key: str, value: object, uninterrupted: Uninterrupted, tiny_run: TinyRun, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted.result.parent, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {key: value}))

    with pytest.raises(RunError, match=r"run\.json is damaged; use another --out"):
        run(tiny_run(), tmp_path / "run")


def test_a_checkpoint_without_a_record_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").touch()

    with pytest.raises(RunError, match=r"has a model\.ckpt without run\.json.*; use another --out"):
        run(tiny_run(), tmp_path)


def test_two_processes_do_not_train_in_one_directory(tmp_path: Path, tiny_run: TinyRun) -> None:
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(RunError, match="another process trains in"),
    ):
        run(tiny_run(), tmp_path)
