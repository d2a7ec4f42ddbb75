"""Checkpoints: saved atomically, loaded without executing code, refused with a reason."""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from glowserve_training.checkpoint import (
    Checkpoint,
    TrainingRecord,
    load_checkpoint,
    save_checkpoint,
)
from glowserve_training.config import DataConfig, GlowConfig
from glowserve_training.data import HeldOutRecord, KnownImage, load_images
from glowserve_training.errors import CheckpointError, RunError
from glowserve_training.model import Glow
from glowserve_training.stored import stored_fields

from glowserve.images import Preparation


@pytest.fixture
def small(generator: torch.Generator) -> Checkpoint:
    """The checkpoint of a model with initialized actnorms and no field at its default."""
    config = GlowConfig(
        image_size=8,
        channels=3,
        n_bits=5,
        levels=2,
        steps_per_level=1,
        width=4,
        coupling="additive",
        parametrization="plain",
    )
    model = Glow(config)
    model(torch.rand(8, 3, 8, 8, generator=generator))
    preparation = Preparation(filter="lanczos", background=7)
    data = DataConfig(data="photos", image_size=8, channels=3, split_seed=3, preparation=preparation)
    record = TrainingRecord(
        steps=5, images_seen=40, seed=2, held_out_digest="ab", metrics={"test_bits_per_dim": 4.5}
    )
    held_out = HeldOutRecord([KnownImage("cats/1.png", "01")], [KnownImage("caf\udce9.png", "02")])
    return Checkpoint(model, data, record, held_out=held_out)


def test_a_checkpoint_is_loaded_as_it_was_saved(small: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(small, tmp_path / "model.ckpt")
    loaded = load_checkpoint(tmp_path / "model.ckpt")

    assert loaded.model.config == small.model.config
    assert loaded.data == small.data
    assert loaded.training == small.training
    assert loaded.held_out == small.held_out
    assert loaded.glowserve_version == importlib.metadata.version("glowserve")
    assert not loaded.model.training
    state = loaded.model.state_dict()
    assert state.keys() == small.model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in small.model.state_dict().items())


def test_a_loaded_model_has_the_likelihoods_of_the_saved_one(
    small: Checkpoint, tmp_path: Path, generator: torch.Generator
) -> None:
    save_checkpoint(small, tmp_path / "model.ckpt")
    images = torch.randint(0, 256, (4, 8, 8, 3), generator=generator, dtype=torch.uint8)
    noise = torch.rand(images.shape, generator=generator)

    loaded = load_checkpoint(tmp_path / "model.ckpt").model

    assert torch.equal(loaded.log_prob(images, noise), small.model.eval().log_prob(images, noise))


def test_the_file_is_plain_data(small: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(small, tmp_path / "model.ckpt")

    content = torch.load(tmp_path / "model.ckpt", weights_only=True)

    assert content["config"] == stored_fields(small.model.config)
    assert content["data"]["preparation"] == {"filter": "lanczos", "background": 7}
    assert content["training"]["metrics"] == {"test_bits_per_dim": 4.5}


def test_a_checkpoint_records_how_it_was_trained(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)

    assert loaded.data == DataConfig(data="digits", image_size=8, channels=1)
    assert loaded.training.steps == 200
    assert loaded.training.images_seen == 200 * 32
    assert set(loaded.training.metrics) == {"validation_bits_per_dim", "test_bits_per_dim"}
    assert loaded.training.held_out_digest == load_images(loaded.data).digest
    assert all(bool(step.actnorm.initialized) for level in loaded.model.levels for step in level.steps)


def test_a_trained_model_decodes_what_it_encodes(checkpoint: Path, digits: np.ndarray) -> None:
    model = load_checkpoint(checkpoint).model
    images = torch.from_numpy(digits)

    with torch.no_grad():
        assert torch.equal(model.decode(model.encode(images)), images)


# Atomic


class FullDisk:
    """Makes its own serialization fail, and records the files in a folder at that moment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[str] = []

    def __deepcopy__(self, memo: object) -> FullDisk:
        return self

    def __reduce__(self) -> str:
        self.seen = [path.name for path in self.folder.iterdir()]
        raise OSError("no space left on device")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(small: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    save_checkpoint(small, path)
    before = path.read_bytes()
    disk = FullDisk(tmp_path)
    record = replace(small.training, metrics={"x": disk})  # type: ignore[dict-item]

    with pytest.raises(
        RunError, match=r"the finished model could not be written .* no space left.* Make room"
    ):
        save_checkpoint(replace(small, training=record), path)

    assert len(disk.seen) == 2  # the old file, and a new one beside it
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_replaces_an_older_one(small: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"older")

    save_checkpoint(small, path)

    assert load_checkpoint(path).training == small.training
    assert list(tmp_path.iterdir()) == [path]


# Other files


def test_a_missing_file_is_reported_with_where_checkpoints_are(tmp_path: Path) -> None:
    for path in (tmp_path / "model.ckpt", tmp_path):
        with pytest.raises(CheckpointError, match="there is no such file; `glowserve train` writes RUN_DIR"):
            load_checkpoint(path)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(small: Checkpoint, share: float, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    save_checkpoint(small, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])

    with pytest.raises(
        CheckpointError, match=r"model\.ckpt cannot be read: it is damaged or not a checkpoint"
    ):
        load_checkpoint(path)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n and so on")

    with pytest.raises(
        CheckpointError, match=r"photo\.png cannot be read: it is damaged or not a checkpoint"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.zeros(3)])
def test_a_pytorch_file_of_another_program_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")

    with pytest.raises(CheckpointError, match=r"other\.pt was not written by `glowserve train`"):
        load_checkpoint(tmp_path / "other.pt")


class Malicious:
    """Makes a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_no_code_in_a_file_is_executed(tmp_path: Path) -> None:
    torch.save(
        {"format": "glowserve.checkpoint", "config": Malicious(tmp_path / "trap")}, tmp_path / "m.ckpt"
    )

    with pytest.raises(CheckpointError, match="cannot be read: it is damaged"):
        load_checkpoint(tmp_path / "m.ckpt")

    assert not (tmp_path / "trap").exists()
    torch.load(tmp_path / "m.ckpt", weights_only=False)
    assert (tmp_path / "trap").exists()  # so the trap works


def test_another_format_version_is_reported_with_the_version_that_wrote_it(
    small: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "model.ckpt"
    save_checkpoint(small, path)
    content = torch.load(path, weights_only=True)
    torch.save(content | {"format_version": 2, "glowserve_version": "9.9"}, path)

    with pytest.raises(
        CheckpointError, match=r"format version 2 .* reads 1; .* that wrote it, glowserve 9\.9"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("part", "content", "reason"),
    [
        ("config", {"image_size": 8, "channels": 5}, "channels is 5"),
        ("config", {"image_size": 8, "channels": 1, "depth": 3}, "depth"),
        ("config", None, "NoneType"),
        ("state_dict", {}, "Missing key|loading state_dict"),
        ("data", {"data": "digits"}, "preparation"),
        ("training", {"steps": 3}, "missing"),
        ("held_out", {"validation": [{"key": 3, "sha256": "ab"}], "test": []}, "known by strings"),
        ("held_out", {"validation": [{"key": "3"}], "test": []}, "sha256"),
        ("held_out", {"validation": []}, "test"),
        ("held_out", [3], "list"),
    ],
)
def test_a_file_with_wrong_content_is_refused_with_the_reason(
    small: Checkpoint, part: str, content: object, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.ckpt"
    save_checkpoint(small, path)
    torch.save(torch.load(path, weights_only=True) | {part: content}, path)

    with pytest.raises(CheckpointError, match=f"has missing or wrong content: .*({reason})"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "part", ["format_version", "glowserve_version", "config", "data", "training", "state_dict"]
)
def test_a_file_with_missing_content_is_refused(small: Checkpoint, part: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    save_checkpoint(small, path)
    content = torch.load(path, weights_only=True)
    del content[part]
    torch.save(content, path)

    with pytest.raises(CheckpointError, match=part if part != "format_version" else "format version None"):
        load_checkpoint(path)
