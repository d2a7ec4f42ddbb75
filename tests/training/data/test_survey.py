"""A look at some images of a source gives a model's shape, and tells what a user might not expect."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from glowserve_training.data import Source, SourceImages, load_images, open_source, survey_images
from glowserve_training.errors import DataError
from glowserve_training.presets import run_config
from PIL import Image

from tests.training.data.loading import config


def save(path: Path, rng: np.random.Generator, *shape: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path, rng: np.random.Generator) -> Path:
    """119 pictures in colour, 12 pixels high, after one in grey of 4 x 4 pixels."""
    save(tmp_path / "photos" / "000.png", rng, 4, 4)
    for i in range(1, 120):
        save(tmp_path / "photos" / f"{i:03d}.png", rng, 12, 14, 3)
    return tmp_path / "photos"


def test_the_first_image_does_not_decide_the_shape(photos: Path) -> None:
    model = run_config(str(photos)).model

    assert (model.image_size.stored, model.channels) == (12, 3)


def test_a_few_images_in_colour_do_not_decide_that_the_model_has_colour(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    for i in range(60):
        save(tmp_path / f"{i:02d}.png", rng, 8, 8, *((3,) if i < 6 else ()))
    assert survey_images(open_source(str(tmp_path))["train"]).channels == 1

    save(tmp_path / "06.png", rng, 8, 8, 3)
    assert survey_images(open_source(str(tmp_path))["train"]).channels == 3


def test_of_many_images_some_are_looked_at_and_the_same_ones_each_time(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []
    get = SourceImages.__getitem__
    images = SourceImages(rng.integers(0, 256, (100_000, 4, 4, 1), dtype=np.uint8))
    monkeypatch.setattr(
        SourceImages, "__getitem__", lambda self, index: looked_at.append(index) or get(self, index)
    )

    found, again = survey_images(images), survey_images(images)

    assert found == again
    assert len(looked_at) == 2 * 256
    assert len(set(looked_at)) == 256
    assert {0, 99_999} < set(looked_at)
    assert str(found) == "4 x 4 pixels, all grey; 256 were looked at"


def test_of_large_files_only_the_headers_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    for i in range(60):
        save(tmp_path / f"{i}.png", rng, 200, 200, 3)
    read: list[int] = []
    get = SourceImages.__getitem__
    monkeypatch.setattr(SourceImages, "__getitem__", lambda self, i: read.append(i) or get(self, i))

    assert str(survey_images(open_source(str(tmp_path))["train"])) == "200 x 200 pixels, all in colour"
    assert read == []


# What is told


def told(data: Path, **changes: int | str) -> list[str]:
    lines: list[str] = []
    given = run_config(str(data), **changes).data
    load_images(given, say=lines.append)
    return lines


def test_what_was_read_and_how_it_is_split_is_told(photos: Path) -> None:
    (photos / "notes.txt").touch()
    (photos / ".DS_Store").touch()

    assert told(photos) == [
        f"data: 120 images in {photos}; left out: 1 .txt, 1 hidden",
        "images: 4 x 4 to 12 x 14 pixels, 119 in colour and 1 grey; the model gets 12 x 12 in colour",
        "warning: 1 of 120 images are smaller than 12 x 12 and are enlarged",
        "split: 96 to train on, 6 for validation, 6 for calibration, 12 for test; validation, calibration and test "
        "drawn at random, not stratified (split seed 0)",
    ]


def test_colours_that_are_lost_are_told(photos: Path) -> None:
    assert "warning: 119 of 120 images lose their colours; --channels 3 keeps them" in told(
        photos, channels=1
    )


@pytest.mark.parametrize(("kind", "mode"), [("png", "RGB"), ("jpg", "RGB"), ("png", "RGBA"), ("png", "P")])
def test_images_that_are_stored_in_colour_and_show_none_are_told(
    kind: str, mode: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    for i in range(60):
        grey = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8))
        grey.convert(mode).save(tmp_path / f"{i}.{kind}")

    assert any("are stored in colour and show none: --channels 1 makes" in line for line in told(tmp_path))
    assert not any("warning" in line for line in told(tmp_path, channels=1))


def test_images_with_one_coloured_pixel_are_coloured(tmp_path: Path) -> None:
    for i in range(60):
        image = Image.new("RGB", (8, 8), (i, i, i))
        image.putpixel((3, 3), (200, 30, 30))
        image.save(tmp_path / f"{i}.png")

    assert not any("warning" in line for line in told(tmp_path))


def test_splits_of_the_data_are_told(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = {
        f"{name}_images": rng.integers(0, 256, (60, 8, 8), dtype=np.uint8) for name in ("train", "test")
    }
    np.savez(tmp_path / "a.npz", **arrays)
    assert told(tmp_path / "a.npz")[-1] == (
        "split: 54 to train on, 3 for validation, 3 for calibration, 60 for test; validation and calibration drawn at "
        "random, not stratified (split seed 0)"
    )


def test_a_damaged_image_is_counted_and_the_others_are_used(
    photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        (photos / f"{i:03d}.png").write_bytes(b"damaged")

    assert told(photos)[0] == f"data: 120 images in {photos}"
    assert "3 of 120 images cannot be read and are skipped: image " in capfd.readouterr().err


# Sources


def test_a_name_that_is_not_utf_8_is_an_image_like_any_other(
    photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = Path(os.fsdecode(bytes(photos) + b"/caf\xe9.png"))
    Image.new("RGB", (12, 12)).save(path)
    assert len(open_source(str(photos))["train"]) == 121
    path.write_bytes(b"damaged")

    load_images(config(photos))

    assert rf"image {photos}/caf\udce9.png (7 bytes are not" in capfd.readouterr().err


def test_a_path_that_is_not_utf_8_is_refused_with_a_remedy(photos: Path) -> None:
    path = photos.rename(os.fsdecode(bytes(photos) + b"\xe9"))

    with pytest.raises(
        DataError, match=r"photos\\udce9' is not UTF-8; rename it, or give the path of a link to it"
    ):
        open_source(str(path))

    photos.symlink_to(path)
    assert len(open_source(str(photos))["train"]) == 120


def test_links_of_a_split_to_images_of_another_part_are_refused(
    photos: Path, rng: np.random.Generator
) -> None:
    (photos / "test").mkdir()
    for i in range(5):
        (photos / "test" / f"{i}.png").symlink_to(f"../00{i}.png")

    with pytest.raises(
        DataError, match="all of 'test' are links to images elsewhere in the folder, such as test/0"
    ):
        open_source(str(photos))


def test_a_source_of_files_knows_them_in_order(photos: Path) -> None:
    source = open_source(str(photos))

    assert isinstance(source, Source)
    assert source.files == [f"{i:03d}.png" for i in range(120)]
    assert open_source("digits").files is None


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_an_archive_is_refused_with_the_command_that_unpacks_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK")

    with pytest.raises(
        DataError, match=r"it is an archive: unpack it into a folder of its own \(`(unzip|tar xf) a\."
    ):
        open_source(str(tmp_path / name))


def test_pictures_of_which_the_crop_leaves_less_than_half_are_told(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    for i in range(60):
        save(tmp_path / f"{i}.png", rng, 8, 24 if i < 20 else 8)
    cut = "20 of 60 images lose more than half of their pixels, since 8 x 8 is cropped out of their middle"

    assert any(cut in line for line in told(tmp_path))
    assert not any("warning" in line for line in told(tmp_path, fit="pad"))
    assert any("40 of 60 images lose more" in line for line in told(tmp_path, image_size="4x12"))


@pytest.mark.parametrize("bits", [10, 12])
def test_upper_bits_that_no_picture_uses_are_told(
    bits: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    for i in range(60):
        deep = rng.integers(0, 2**bits, (8, 8), dtype=np.uint16)
        deep[0, 0] = 2**bits - 1
        Image.fromarray(deep).save(tmp_path / f"{i}.png")
    unused = f"upper bits of the 16-bit images are unused, the largest value found is {2**bits - 1}: --bits-used {bits}"

    found = survey_images(open_source(str(tmp_path))["train"])

    assert any(unused in remark for remark in found.remarks(config(tmp_path)))
    assert not any("warning" in line for line in told(tmp_path, bits_used=bits))


def test_sixteen_bits_that_are_used_are_not_told(tmp_path: Path, rng: np.random.Generator) -> None:
    for i in range(60):
        Image.fromarray(rng.integers(0, 2**16, (8, 8), dtype=np.uint16)).save(tmp_path / f"{i}.png")

    assert not any("warning" in line for line in told(tmp_path))
