"""Data sources: scikit-learn's digits, arrays, folders, parquet files, and datasets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from glowserve.images import FILE_SUFFIXES, UInt8Array
from glowserve_training.data.source_images import SourceImages
from glowserve_training.errors import DataError

# Names of the splits here, and the names that sources use for them.
_SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def open_source(data: str) -> dict[str, SourceImages]:
    """Opens a data source.

    Args:
        data: "digits" (scikit-learn's 8x8 digits); the path of a folder of images, of a folder of parquet files, of a
            .parquet or an .npz file; or a dataset's name on the Hugging Face hub.

    Returns:
        Images by split. Keys are "train" and, if the source has such splits, "validation" and "test".

    Raises:
        DataError: there is no such source, or it has no images.
    """
    path = Path(data)
    if not data:
        raise DataError("data is empty; give 'digits', a path, or a dataset's name on the Hugging Face hub")
    if data == "digits":
        splits = {"train": SourceImages(_digits())}
    elif path.suffix == ".npz" and path.is_file():
        splits = _arrays(path)
    elif path.suffix == ".parquet" and path.is_file():
        splits = _dataset(data, "parquet", data_files={"train": str(path)})
    elif path.is_dir():
        splits = _folder(path)
    elif path.exists():
        raise DataError(f"data {data!r} is a file; use a .parquet or .npz file, or a folder of images")
    elif data.startswith((".", "/", "~")) or data.count("/") > 1:
        raise DataError(f"data {data!r}: there is no such file or folder")
    else:
        splits = _dataset(data, data)
    return _with_our_names(data, splits)


def _digits() -> UInt8Array:
    """1,797 handwritten digits, uint8 [1797, 8, 8, 1].

    The original has pixel values 0 to 16. 4 bits hold 0 to 15, so 16 is replaced by 15. Value v becomes byte 17 v,
    whose 4-bit bin is v.
    """
    from sklearn.datasets import load_digits

    images: UInt8Array = (np.minimum(load_digits().images, 15) * 17).astype(np.uint8)[..., None]
    return images


def _arrays(path: Path) -> dict[str, SourceImages]:
    """The arrays named "images" or "SPLIT_images" in an .npz file."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            names = file.files
            arrays = {name: file[name] for name in names if name == "images" or name.endswith("_images")}
    except Exception as error:  # zip and NumPy raise many kinds of errors for foreign bytes
        raise DataError(
            f"{path} cannot be read as an .npz file of plain arrays; save it again with numpy.savez"
        ) from error
    if not arrays:
        found = ", ".join(names) or "nothing"
        raise DataError(f"{path} has {found}; it must have an array 'images', or 'train_images' and so on")
    splits = {}
    for name, array in arrays.items():
        images = array[..., None] if array.ndim == 3 else array
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise DataError(
                f"{path}: array {name!r} is {array.dtype} {list(array.shape)}; it must be uint8 [N, H, W] or "
                "[N, H, W, C] with C 1 or 3"
            )
        splits[name.removesuffix("images").rstrip("_") or "train"] = SourceImages(images)
    return splits


def _folder(path: Path) -> dict[str, SourceImages]:
    """The folder's images, ordered by path; subfolders "train" and so on are splits.

    `datasets` could read folders, but takes file names for splits, too: of a folder with a file "my-test.png", it
    would silently ignore all other images.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    images = [file for file in files if file.suffix.lower() in FILE_SUFFIXES]
    if any(file.suffix.lower() == ".parquet" for file in files):
        if images:
            raise DataError(
                f"data {str(path)!r} has both .parquet files and images; keep one kind in a folder"
            )
        return _dataset(str(path), "parquet", data_dir=str(path))
    if not images:
        kinds = ", ".join(sorted(FILE_SUFFIXES))
        raise DataError(f"data {str(path)!r}: the folder has no images; looked for {kinds}, and for .parquet")
    splits = {
        name: [file for file in images if file.relative_to(path).parts[0] in names]
        for name, names in _SPLIT_NAMES.items()
    }
    if not splits["train"]:
        return {"train": _image_files(images)}
    outside = sorted(set(images) - {file for split in splits.values() for file in split})
    if outside:
        raise DataError(
            f"data {str(path)!r} has a folder 'train' and {len(outside)} images outside of it and of 'validation' "
            f"and 'test', such as {outside[0]}; move them, or rename the folder"
        )
    return {name: _image_files(split) for name, split in splits.items() if split}


def _image_files(files: Sequence[Path]) -> SourceImages:
    """Images in files, in the same order."""
    import datasets

    features = datasets.Features({"image": datasets.Image(decode=False)})
    return SourceImages(
        datasets.Dataset.from_dict({"image": [str(file) for file in files]}, features=features)
    )


def _dataset(data: str, builder: str, **arguments: object) -> dict[str, SourceImages]:
    """The splits that the Hugging Face library `datasets` finds."""
    import datasets

    datasets.disable_progress_bars()
    splits = {}
    try:
        loaded: Mapping[str, datasets.Dataset] = datasets.load_dataset(builder, **arguments)
        for name, rows in loaded.items():
            column = _image_column(data, rows.features)
            splits[name] = SourceImages(rows.cast_column(column, datasets.Image(decode=False)), column)
    except DataError:
        raise
    except Exception as error:  # of many kinds: network, file system, Arrow, configuration
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise DataError(
            f"data {data!r} cannot be read: {reason}. It must be 'digits', a folder of images, a .parquet or "
            ".npz file, or a dataset's name on the Hugging Face hub"
        ) from error
    return splits


def _image_column(data: str, features: Mapping[str, object]) -> str:
    """The name of the column with images."""
    import datasets

    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    named = [name for name in ("image", "img", "images", "jpg", "png") if name in features]
    for name in (*typed, *named):
        return name
    columns = ", ".join(features) or "none"
    raise DataError(f"data {data!r} has no column of images; its columns are {columns}. Name one 'image'")


def _with_our_names(data: str, found: dict[str, SourceImages]) -> dict[str, SourceImages]:
    """The splits under the names of `_SPLIT_NAMES`; a single split, whatever its name, is "train"."""
    splits = {
        ours: found[theirs] for ours, names in _SPLIT_NAMES.items() for theirs in names if theirs in found
    }
    if len(found) == 1:
        splits = {"train": next(iter(found.values()))}
    if "train" not in splits:
        raise DataError(f"data {data!r} has splits {', '.join(found)}; one of them must be named 'train'")
    if not splits["train"]:
        raise DataError(f"data {data!r} has no images")
    return splits
