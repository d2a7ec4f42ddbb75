"""Data sources: scikit-learn's digits, arrays, folders, parquet files, and datasets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from glowserve.folders import FILE_SUFFIXES, find_pictures, unpacking
from glowserve.images import MODES, UInt8Array
from glowserve.output import printable
from glowserve_training.data.source_images import ImageFiles, SourceImages
from glowserve_training.errors import DataError

# Names of the splits here, and the names that sources use for them.
_SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


DIGITS = "digits"
"""The name of scikit-learn's digits."""


class Source(dict[str, SourceImages]):
    """Images by split. Keys are "train" and, if the source has such splits, "validation" and "test".

    Args:
        splits: the images.
        left_out: what a folder has besides them, in words; "" if nothing.
    """

    def __init__(self, splits: Mapping[str, SourceImages], left_out: str = "") -> None:
        super().__init__(splits)
        self.left_out = left_out

    @property
    def files(self) -> list[str] | None:
        """The paths of all images from the folder, ordered; None if the source is not a folder of images."""
        names = [name for images in self.values() if images.names is not None for name in images.names]
        return sorted(names, key=_parts) if names else None


def open_source(data: str, *, files: Sequence[str] | None = None) -> Source:
    """Opens a data source.

    Args:
        data: "digits" (scikit-learn's 8x8 digits); the path of a folder of images, of a folder of parquet files, of a
            .parquet or an .npz file; or a dataset's name on the Hugging Face hub.
        files: of a folder of images, the only files to use, as `Source.files` names them; None for all.

    Raises:
        DataError: there is no such source, it has no images, or some of `files` are missing.
    """
    path = Path(data)
    if not data:
        raise DataError("data is empty; give 'digits', a path, or a dataset's name on the Hugging Face hub")
    try:
        data.encode()
    except UnicodeEncodeError as error:  # the manifest of a bundle could not name it
        raise DataError(f"data {data!r} is not UTF-8; rename it, or give the path of a link to it") from error
    if data == DIGITS:
        return Source({"train": SourceImages(_digits())})
    if path.is_dir():
        return _folder(path, files)
    if path.suffix == ".npz" and path.is_file():
        splits = _arrays(path)
    elif path.suffix == ".parquet" and path.is_file():
        splits = _dataset(data, "parquet", data_files={"train": str(path)})
    elif path.exists():
        remedy = unpacking(path) or "it is a file; use a .parquet or .npz file, or a folder of images"
        raise DataError(f"data {data!r}: {remedy}")
    elif data.startswith((".", "/", "~")) or data.count("/") > 1:
        raise DataError(f"data {data!r}: there is no such file or folder")
    else:
        splits = _dataset(data, data)
    return Source(_with_our_names(data, splits))


def _digits() -> UInt8Array:
    """1,797 handwritten digits, uint8 [1797, 8, 8, 1].

    The original has pixel values 0 to 16. 4 bits hold 0 to 15, so 16 is replaced by 15. Value v becomes byte 17 v,
    whose 4-bit bin is v.
    """
    from sklearn.datasets import load_digits

    images: UInt8Array = (np.minimum(load_digits().images, 15) * 17).astype(np.uint8)[..., None]
    return images


def read_arrays(path: Path, suffix: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of all arrays in an .npz file, and those arrays that are named SUFFIX or "SPLIT_SUFFIX", by name.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            names = file.files
            return names, {
                name: file[name] for name in names if name == suffix or name.endswith(f"_{suffix}")
            }
    except Exception as error:  # zip and NumPy raise many kinds of errors for foreign bytes
        raise DataError(
            f"{path} cannot be read as an .npz file of plain arrays; save it again with numpy.savez"
        ) from error


def _arrays(path: Path) -> dict[str, SourceImages]:
    """The arrays named "images" or "SPLIT_images" in an .npz file."""
    names, arrays = read_arrays(path, "images")
    if not arrays:
        found = ", ".join(names) or "nothing"
        raise DataError(f"{path} has {found}; it must have an array 'images', or 'train_images' and so on")
    splits = {}
    for name, array in arrays.items():
        images = array[..., None] if array.ndim == 3 else array
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in MODES:
            raise DataError(
                f"{path}: array {name!r} is {array.dtype} {list(array.shape)}; it must be uint8 [N, H, W] or "
                "[N, H, W, C] with C 1 to 4"
            )
        split = name.removesuffix("images").rstrip("_") or "train"
        splits[split] = SourceImages(images, split=split)
    return splits


def _folder(path: Path, files: Sequence[str] | None) -> Source:
    """The folder's images, ordered by path; subfolders "train" and so on are splits.

    `datasets` could read folders, but takes file names for splits, too: of a folder with a file "my-test.png", it
    would silently ignore all other images.
    """
    data = str(path)
    try:
        found = find_pictures(path)
    except OSError as error:
        raise DataError(f"data {data!r}: the folder cannot be listed: {error.strerror}") from error
    if found.others[".parquet"]:
        if found.names:
            raise DataError(f"data {data!r} has both .parquet files and images; keep one kind in a folder")
        return Source(_with_our_names(data, _dataset(data, "parquet", data_dir=data)))
    left_out = found.left_out()
    names = found.names
    if files is not None:
        names = _only(data, names, files)
        if added := len(found.names) - len(names):
            left_out = ", ".join(filter(None, (left_out, f"{added} added since the run began")))
    if not names:
        kinds = ", ".join(sorted(FILE_SUFFIXES))
        raise DataError(
            f"data {data!r}: the folder has no images; looked for {kinds}, and for .parquet"
            + (f"; left out {left_out}" if left_out else "")
        )
    _check_links(data, found.repeated, names)
    return Source(_folder_splits(path, names), left_out)


def _only(data: str, names: Sequence[str], files: Sequence[str]) -> list[str]:
    """The names that are among `files`, all of which must be there."""
    wanted, there = set(files), set(names)
    if missing := sorted(wanted - there, key=_parts):
        raise DataError(
            f"data {data!r}: {len(missing)} of the {len(wanted)} images that the run began with are missing, such as "
            f"{printable(missing[0])}; restore them, or use another --out"
        )
    return [name for name in names if name in wanted]


def _folder_splits(path: Path, names: Sequence[str]) -> dict[str, SourceImages]:
    splits = {
        ours: [name for name in names if _parts(name)[0] in theirs] for ours, theirs in _SPLIT_NAMES.items()
    }
    if not splits["train"]:
        return {"train": SourceImages(ImageFiles(path, names))}
    outside = sorted(set(names) - {name for split in splits.values() for name in split}, key=_parts)
    if outside:
        raise DataError(
            f"data {str(path)!r} has a folder 'train' and {len(outside)} images outside of it and of 'validation' "
            f"and 'test', such as {printable(str(path / outside[0]))}; move them, or rename the folder"
        )
    return {ours: SourceImages(ImageFiles(path, split)) for ours, split in splits.items() if split}


def _check_links(data: str, links: Sequence[str], names: Sequence[str]) -> None:
    """Refuses a split of which nothing is left, because its links lead to images in another part of the folder."""
    split_folders = {name for theirs in _SPLIT_NAMES.values() for name in theirs}
    empty = split_folders - {_parts(name)[0] for name in names}
    if lost := [link for link in links if _parts(link)[0] in empty]:
        raise DataError(
            f"data {data!r}: all of '{_parts(lost[0])[0]}' are links to images elsewhere in the folder, such as "
            f"{printable(lost[0])}; an image belongs to one split: move the images there, or out of the folder"
        )


def _parts(name: str) -> list[str]:
    return name.split("/")


def _dataset(data: str, builder: str, **arguments: object) -> dict[str, SourceImages]:
    """The splits that the Hugging Face library `datasets` finds."""
    from glowserve_training.data.hugging_face import datasets

    datasets.disable_progress_bars()
    splits = {}
    try:
        loaded: Mapping[str, datasets.Dataset] = datasets.load_dataset(builder, **arguments)
        for name, rows in loaded.items():
            column = _image_column(data, rows.features)
            encoded = rows.cast_column(column, datasets.Image(decode=False))
            splits[name] = SourceImages(encoded, column, split=name)
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
    from glowserve_training.data.hugging_face import datasets

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
