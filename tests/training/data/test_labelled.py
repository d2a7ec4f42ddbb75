"""Images with labels, from every kind of source: the classes, and the class of each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glowserve_training.data import choose_splits
from glowserve_training.data.hugging_face import datasets
from glowserve_training.data.labelled import Labelled, open_labelled, read_labelled
from glowserve_training.errors import DataError
from PIL import Image

from tests.training.data.loading import config

GREY = np.arange(60, dtype=np.uint8)[:, None, None].repeat(8, axis=1).repeat(8, axis=2)
"""60 images, whose pixels have the image's number as value."""
ODD = [i % 2 for i in range(60)]


def labels(labelled: Labelled, column: int = 0, split: str = "train") -> list[str | None]:
    """The names of the classes of all images."""
    found = labelled.columns[column]
    return [
        None if code < 0 else found.classes[code] for code in found.codes[labelled.source[split]].tolist()
    ]


def saved(path: Path, **arrays: Any) -> str:
    np.savez(path / "a.npz", **arrays)
    return str(path / "a.npz")


def in_folders(folder: Path, classes: list[str]) -> None:
    """Saves the images as CLASS/00.png and so on."""
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY[i]).save(folder / name / f"{i:02}.png")


# Arrays


def test_labels_are_the_array_beside_the_images(tmp_path: Path) -> None:
    labelled = open_labelled(saved(tmp_path, images=GREY, labels=np.arange(60) % 3 * 5))
    (column,) = labelled.columns
    assert (column.name, column.classes, column.yes) == ("labels", ("0", "5", "10"), None)
    assert labels(labelled) == [str(i % 3 * 5) for i in range(60)]


def test_each_split_has_an_array_of_labels_and_columns_have_any_name(tmp_path: Path) -> None:
    splits = {"train_images": GREY, "test_images": GREY[:9]}
    words = {"train_kind": np.array(["cat", "dog"])[ODD], "test_kind": np.array(["dog"] * 9)}
    yes = {"train_thick": np.array(ODD, bool), "test_thick": np.array(ODD[:9], bool)}
    labelled = open_labelled(saved(tmp_path, **splits, **words, **yes), ["thick", "kind", "thick"])
    thick, kind = labelled.columns
    assert (thick.name, thick.classes, thick.yes) == ("thick", ("0", "1"), 1)
    assert (kind.name, kind.classes, kind.yes) == ("kind", ("cat", "dog"), None)
    assert labels(labelled, 1, "test") == ["dog"] * 9


@pytest.mark.parametrize(
    ("arrays", "names", "words"),
    [
        ({}, (), "has no labels; give images in a folder for each class, with a labels.csv"),
        ({"kind": ODD}, (), "its columns are 'kind': choose with --label-column"),
        ({"labels": ODD}, ("age",), "has no column of labels 'age'; its columns are 'labels'"),
        ({"labels": ODD[1:]}, (), r"are int64 \[59\]; they must be integers or words \[60\]"),
        ({"labels": np.linspace(0, 1, 60)}, (), r"are float64 \[60\]; they must be integers"),
        ({"labels": [3] * 60}, (), r"labels 'labels' have 1 classes \(3\); they must have 2 to 1000"),
    ],
)
def test_arrays_without_labels_are_refused_with_those_there_are(
    tmp_path: Path, arrays: dict[str, Any], names: tuple[str, ...], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        open_labelled(saved(tmp_path, images=GREY, **arrays), names)


def test_a_split_without_its_labels_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, train_images=GREY, test_images=GREY, train_labels=ODD)
    with pytest.raises(DataError, match="has no array 'test_labels', the labels of 'test'"):
        open_labelled(path)


# Folders


def test_a_class_is_the_folder_that_an_image_lies_in(tmp_path: Path) -> None:
    in_folders(tmp_path, ["cats", "dogs", "cats/persian"] * 20)
    labelled = open_labelled(str(tmp_path))
    (column,) = labelled.columns
    assert (column.name, column.classes) == ("", ("cats", "dogs"))
    assert labels(labelled).count("cats") == 40


def test_the_folders_of_splits_hold_those_of_classes(tmp_path: Path) -> None:
    in_folders(tmp_path / "train", ["a", "b"] * 25)
    in_folders(tmp_path / "val", ["b"])
    labelled = open_labelled(str(tmp_path))
    assert labelled.columns[0].classes == ("a", "b")
    assert labels(labelled, split="validation") == ["b"]


def test_an_image_in_no_folder_of_a_class_is_named(tmp_path: Path) -> None:
    in_folders(tmp_path, ["a", "b", "."])
    with pytest.raises(DataError, match=r"there is no labels\.csv in it, and 02\.png lies in no folder"):
        open_labelled(str(tmp_path))


def test_labels_csv_has_a_row_for_each_image_and_a_column_for_each_label(tmp_path: Path) -> None:
    in_folders(tmp_path, ["x", "y"] * 30)
    rows = [f"./{'xy'[i % 2]}/{i:02}.png, {'yes' if i % 3 else 'no'} ,{i % 4 or ''}" for i in range(50)]
    (tmp_path / "labels.csv").write_text("\ufeff" + "\n".join(["file,smiling,kind", *rows, ""]))
    labelled = open_labelled(str(tmp_path))
    smiling, kind = labelled.columns
    assert (smiling.name, smiling.classes, smiling.yes) == ("smiling", ("no", "yes"), 1)
    assert (kind.name, kind.classes, kind.yes) == ("kind", ("1", "2", "3"), None)
    names = labelled.source["train"].names
    assert names is not None
    for name, smile, number in zip(names, labels(labelled), labels(labelled, 1), strict=True):
        i = int(name[2:4])
        assert smile == (None if i >= 50 else "yes" if i % 3 else "no")
        assert number == (str(i % 4) if i < 50 and i % 4 else None)
    assert [column.name for column in open_labelled(str(tmp_path), ["kind"]).columns] == ["kind"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"labels\.csv cannot be read as CSV in UTF-8 with a header"),
        (
            "file\nx/00.png\n",
            "has the header 'file'; it must be a name for the files, and then a different name",
        ),
        ("file,a,a\nx/00.png,0,1\n", "has the header 'file,a,a'"),
        ("file,a\nx/00.png,0,1\n", r"the row of 'x/00\.png' has 3 cells, and the header 2"),
        ("file,a\nx/00.png,0\nx/00.png,1\n", r"has two rows of 'x/00\.png'; remove one"),
        (
            "file,a\n00.png,0\n",
            r"names no image of the folder; a row must begin with a path such as x/00\.png",
        ),
        ('file,a\n"x', "cannot be read as CSV"),
        ("file,a\nx/00.png,0.5\n", r"labels 'a' have 1 classes \(0\.5\)"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path: Path, text: str, words: str) -> None:
    in_folders(tmp_path, ["x"] * 3)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        open_labelled(str(tmp_path))


# Datasets


def dataset(tmp_path: Path, **columns: tuple[list[Any], Any]) -> str:
    """A parquet file of the images with columns of these values and types."""
    features = {name: kind for name, (_, kind) in columns.items()}
    rows = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(image) for image in GREY]}
        | {name: values for name, (values, _) in columns.items()},
        features=datasets.Features({"image": datasets.Image()} | features),
    )
    rows.to_parquet(tmp_path / "a.parquet")
    return str(tmp_path / "a.parquet")


def test_a_column_with_named_classes_is_found_by_its_type(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["ship", "plane", "never"])
    path = dataset(tmp_path, kind=([-1, *ODD[1:]], names), size=(ODD, datasets.Value("int64")))
    labelled = open_labelled(path)
    (column,) = labelled.columns
    assert (column.name, column.classes) == ("kind", ("ship", "plane", "never"))
    assert labels(labelled)[:4] == [None, "plane", "ship", "plane"]
    assert open_labelled(path, ["size"]).columns[0].yes == 1


def test_a_column_named_label_is_taken_if_no_type_names_classes(tmp_path: Path) -> None:
    words = [None, *["a", "b"] * 29, "a"]
    path = dataset(
        tmp_path, label=(words, datasets.Value("string")), length=([0.5] * 60, datasets.Value("float64"))
    )
    assert labels(open_labelled(path)) == words
    with pytest.raises(
        DataError, match=r"labels 'length' have the value 0\.5, of type float; labels are 0 and"
    ):
        open_labelled(path, ["length"])
    with pytest.raises(DataError, match="has no column of labels 'image'; its columns are 'label', 'length'"):
        open_labelled(path, ["image"])


def test_the_digits_have_their_digit() -> None:
    (column,) = open_labelled("digits").columns
    assert (column.name, column.classes) == ("digit", tuple("0123456789"))


# Reading


def test_images_are_read_with_their_labels_and_of_each_split_the_same_share(tmp_path: Path) -> None:
    classes = [f"{i % 4}" for i in range(60)]
    in_folders(tmp_path, classes)
    (tmp_path / "3" / "03.png").write_bytes(b"no picture")
    labelled, settings = open_labelled(str(tmp_path)), config(tmp_path)
    splits = choose_splits(labelled.source, settings)
    everything = read_labelled(labelled, list(splits.values()), settings, most=1000)
    assert everything.images.shape == (59, 8, 8, 1)
    assert sorted(everything.images[:, 0, 0, 0].tolist()) == [i for i in range(60) if i != 3]
    assert everything.codes[:, 0].tolist() == (everything.images[:, 0, 0, 0] % 4).tolist()
    some = read_labelled(labelled, [splits["train"], splits["test"]], settings, most=27)
    assert len(some.images) in (26, 27)
    names = labelled.source["train"].names
    assert names is not None
    chosen = [*splits["train"][1][:24], *splits["test"][1][:3]]
    expected = [int(names[index][2:4]) for index in chosen]
    assert some.images[:, 0, 0, 0].tolist() == [number for number in expected if number != 3]


def test_a_source_of_which_too_much_is_unreadable_is_refused(tmp_path: Path) -> None:
    in_folders(tmp_path, ["a", "b"] * 30)
    for file in list(tmp_path.rglob("*.png"))[:20]:
        file.write_bytes(b"no picture")
    labelled, settings = open_labelled(str(tmp_path)), config(tmp_path)
    splits = choose_splits(labelled.source, settings)
    with pytest.raises(DataError, match="20 of 60 images cannot be read, more than 1 in 10"):
        read_labelled(labelled, list(splits.values()), settings, most=1000)
