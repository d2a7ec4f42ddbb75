"""Sets: all images of a source, or some that are spread evenly, whatever splits it has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from glowserve_training.data import DataConfig, load_set
from glowserve_training.errors import DataError
from PIL import Image


def config(path: Path) -> DataConfig:
    return DataConfig(data=str(path), image_size=4, channels=1)


def save(folder: Path, values: range) -> None:
    """Images of one grey value each, named so that they are in order."""
    folder.mkdir(parents=True, exist_ok=True)
    for value in values:
        Image.new("L", (4, 4), value).save(folder / f"{value:03}.png")


def values(path: Path, most: int) -> list[int]:
    images = load_set(config(path), most).images
    assert images.shape[1:] == (4, 4, 1)
    return [int(value) for value in images[:, 0, 0, 0]]


def test_a_folder_of_few_images_is_read_whole(tmp_path: Path) -> None:
    save(tmp_path, range(3))
    assert values(tmp_path, 10) == [0, 1, 2]
    assert load_set(config(tmp_path), 10).total == 3


def test_of_many_images_some_are_spread_evenly(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz", images=np.arange(101, dtype=np.uint8)[:, None, None] * np.ones((4, 4), np.uint8)
    )
    found = load_set(config(tmp_path / "a.npz"), 5)
    assert found.total == 101
    assert found.images[:, 0, 0, 0].tolist() == [0, 25, 50, 75, 100]
    assert values(tmp_path / "a.npz", 1) == [0]


def test_all_splits_are_read(tmp_path: Path) -> None:
    save(tmp_path / "train", range(3))
    save(tmp_path / "test", range(10, 12))
    assert sorted(values(tmp_path, 10)) == [0, 1, 2, 10, 11]


def test_one_damaged_image_is_skipped_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, range(20))
    (tmp_path / "005.png").write_bytes(b"no picture")
    assert values(tmp_path, 100) == [value for value in range(20) if value != 5]
    assert "1 of 20 images cannot be read and are skipped" in capsys.readouterr().err


@pytest.mark.parametrize(("damaged", "words"), [(5, "more than 1 in 10"), (1, "no image can be read")])
def test_too_many_damaged_images_are_refused(damaged: int, words: str, tmp_path: Path) -> None:
    for i in range(damaged):
        (tmp_path / f"{i}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=words):
        load_set(config(tmp_path), 10)


@pytest.mark.parametrize("name", ["nothing", "uoft-cs/cifar10", "digits"])
def test_a_set_that_is_no_path_is_not_looked_for_elsewhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="there is no such file or folder"):
        load_set(config(Path(name)), 10)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder has no images"):
        load_set(config(tmp_path), 10)
