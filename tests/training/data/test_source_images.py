"""Images of a source: decoded and prepared on access."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from glowserve_training.data import load_images, open_source
from glowserve_training.data.hugging_face import datasets
from glowserve_training.errors import DataError
from PIL import Image

from glowserve.images import Preparation
from tests.training.data.conftest import SaveImages
from tests.training.data.loading import config, contents, native_shape


def test_an_image_is_cropped_to_its_center_and_resized(tmp_path: Path, save_images: SaveImages) -> None:
    save_images(tmp_path / "all", 59)
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, :8], pixels[:, 8:16], pixels[:, 16:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "all" / "flag.png")

    sharp = Preparation(filter="box")
    images = load_images(config(tmp_path / "all", size=4, channels=3, preparation=sharp))

    green = np.zeros((4, 4, 3), np.uint8)
    green[..., 1] = 255
    everything = np.concatenate([images.train, images.validation, images.calibration, images.test])
    assert green.tobytes() in contents(everything)


def test_the_filter_of_the_preparation_is_used(tmp_path: Path, save_images: SaveImages) -> None:
    save_images(tmp_path / "all", 50, size=(20, 20))

    nearest, bicubic = (
        load_images(config(tmp_path / "all", preparation=Preparation(filter=name))).train
        for name in ("nearest", "bicubic")
    )

    assert nearest.shape == bicubic.shape
    assert (nearest != bicubic).mean() > 0.5


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)]
)
def test_a_grey_image_has_1_channel_and_any_other_3(mode: str, channels: int, tmp_path: Path) -> None:
    Image.new("RGBA", (11, 9), (200, 30, 30, 200)).convert(mode).save(tmp_path / "a.png")

    assert native_shape(open_source(str(tmp_path))["train"]) == (9, channels)


def test_a_source_without_a_readable_image_has_no_shape(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"image": ["nowhere.png"]}).to_parquet(tmp_path / "a.parquet")

    with pytest.raises(
        DataError, match=r"none of 1 images can be read: image nowhere\.png \(No such file.*; repair them"
    ):
        native_shape(open_source(str(tmp_path / "a.parquet"))["train"])


def test_unreadable_images_do_not_count_for_the_shape(numbered: Path) -> None:
    for name in ("00.png", "01.png", "17.png"):
        (numbered / name).write_bytes(b"not an image")

    assert native_shape(open_source(str(numbered))["train"]) == (8, 1)


def test_an_error_of_the_disk_is_not_taken_for_an_unreadable_image(
    numbered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_bytes = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "17.png":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", failing)

    with pytest.raises(DataError, match=r"17\.png cannot be read: .*Input/output error.*; try again"):
        load_images(config(numbered))
