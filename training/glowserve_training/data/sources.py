"""Where pictures come from: the embedded digits, arrays, a folder, a parquet file, or a dataset's hub name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image

from glowserve.images import (
    FILE_SUFFIXES,
    InvalidImageError,
    UInt8Array,
    open_encoded,
    to_pil,
)
from glowserve_training.data.damage import Damage, tolerated
from glowserve_training.errors import DataError

if TYPE_CHECKING:
    import datasets

# What a file says that is not there, or not to be read, today and tomorrow; any other trouble may be the disk's.
_UNREADABLE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

# What the splits of a source are called here, and elsewhere.
_SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


class Pictures(Sequence[Image.Image]):
    """Pictures by number, decoded when asked for; not yet of any common size.

    Parquet files and datasets of the hub are mapped by `datasets`, and of a folder only the paths are in memory:
    these may be larger than it. The arrays of an .npz file are read whole, and have to fit.

    Asking for a picture raises InvalidImageError if it is damaged or its file is not there, and DataError if the
    file cannot be read for another reason.
    """

    def __init__(self, rows: datasets.Dataset | UInt8Array, column: str = "image") -> None:
        self._rows = rows
        self._column = column

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | Sequence[Image.Image]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if isinstance(self._rows, np.ndarray):
            return to_pil(self._rows[index])
        try:
            data = self._bytes(index)
        except _UNREADABLE as error:
            raise InvalidImageError(error.strerror) from None
        except OSError as error:
            raise DataError(
                f"{self.name(index)} cannot be read: {error}; try again, or see to its disk"
            ) from error
        return open_encoded(data)

    def name(self, index: int) -> str:
        """What to call a picture: by its file, where it has one."""
        file = None if isinstance(self._rows, np.ndarray) else self._cell(index).get("path")
        return f"image {index if file is None else file}"

    def _bytes(self, index: int) -> bytes:
        cell = self._cell(index)
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        if cell.get("path") is None:
            raise InvalidImageError("there is none, the row is empty")
        return Path(cell["path"]).read_bytes()

    def _cell(self, index: int) -> dict[str, Any]:
        return self._rows[index][self._column] or {}


def open_source(data: str) -> dict[str, Pictures]:
    """Opens what `--data` names.

    Args:
        data: "digits" (scikit-learn's 8x8 digits), the path of a folder of images, of a folder of parquet
            files, of a .parquet or an .npz file, or a dataset's name on the Hugging Face hub.

    Returns:
        Pictures by split, under "train", "validation" and "test" where the source has such splits;
        a source without splits has all under "train".

    Raises:
        DataError: there is nothing of that name, or no images in it.
    """
    path = Path(data)
    if not data:
        raise DataError("data is empty; it must name images")
    if data == "digits":
        splits = {"train": Pictures(_digits())}
    elif path.suffix == ".npz" and path.is_file():
        splits = _arrays(path)
    elif path.suffix == ".parquet" and path.is_file():
        splits = _dataset(data, "parquet", data_files={"train": str(path)})
    elif path.is_dir():
        splits = _folder(path)
    elif path.exists():
        raise DataError(f"data {data!r} is a file; files that can be read are .parquet and .npz")
    elif data.startswith((".", "/", "~")) or data.count("/") > 1:
        raise DataError(f"data {data!r}: there is no such file or folder")
    else:
        splits = _dataset(data, data)
    return _named(data, splits)


def native_shape(pictures: Pictures) -> tuple[int, int]:
    """The shorter side of the first picture in pixels, and its channels: 1 if it is grey, else 3.

    A picture that cannot be read is passed over, as in loading.

    Raises:
        DataError: too many at the beginning cannot be read.
    """
    first = _first_readable(pictures)
    grey = first.mode in ("1", "L", "LA", "I", "F") or first.mode.startswith("I;16")
    return min(first.size), 1 if grey else 3


def _first_readable(pictures: Pictures) -> Image.Image:
    damage = Damage()
    while damage.count < len(pictures):
        try:
            return pictures[damage.count]
        except InvalidImageError as error:
            damage.add(pictures.name(damage.count), error)
            if damage.count > tolerated(len(pictures)):
                break
    raise DataError(
        f"the first {damage.count} pictures cannot be read: {damage}; repair them, or remove them"
    )


def _digits() -> UInt8Array:
    """1,797 handwritten digits of 8x8 pixels, which have grey values 0 to 16.

    16 grey values fit into 4 bits; the 17th, 16, is taken for 15. A value v becomes the byte 17 v, whose bin
    of 4 bits is v.
    """
    from sklearn.datasets import load_digits

    images: UInt8Array = (np.minimum(load_digits().images, 15) * 17).astype(np.uint8)[..., None]
    return images


def _arrays(path: Path) -> dict[str, Pictures]:
    """The arrays called "images" or "SPLIT_images" of an .npz file."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            names = file.files
            arrays = {name: file[name] for name in names if name == "images" or name.endswith("_images")}
    except Exception as error:  # whatever zip and NumPy make of foreign bytes
        raise DataError(
            f"{path} cannot be read as an .npz file of plain arrays: it is damaged or something else"
        ) from error
    if not arrays:
        found = ", ".join(names) or "nothing"
        raise DataError(f"{path} holds {found}; it must hold an array 'images', or 'train_images' and so on")
    splits = {}
    for name, array in arrays.items():
        images = array[..., None] if array.ndim == 3 else array
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise DataError(
                f"{path}: array {name!r} is {array.dtype} {list(array.shape)}; it must be uint8 [N, H, W] or "
                "[N, H, W, C] with C 1 or 3"
            )
        splits[name.removesuffix("images").rstrip("_") or "train"] = Pictures(images)
    return splits


def _folder(path: Path) -> dict[str, Pictures]:
    """Its pictures, in the order of their paths; subfolders called "train" and so on are splits.

    The folders are read here: `datasets` would go by the names of the files, too, and of all pictures keep only
    "my-test.png", without a word.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    pictures = [file for file in files if file.suffix.lower() in FILE_SUFFIXES]
    if any(file.suffix.lower() == ".parquet" for file in files):
        if pictures:
            raise DataError(
                f"data {str(path)!r} holds both .parquet files and pictures; keep one kind in a folder"
            )
        return _dataset(str(path), "parquet", data_dir=str(path))
    if not pictures:
        kinds = ", ".join(sorted(FILE_SUFFIXES))
        raise DataError(
            f"data {str(path)!r}: the folder holds no images; looked for {kinds}, and for .parquet"
        )
    splits = {
        name: [file for file in pictures if file.relative_to(path).parts[0] in names]
        for name, names in _SPLIT_NAMES.items()
    }
    if not splits["train"]:
        return {"train": _pictures(pictures)}
    outside = sorted(set(pictures) - {file for split in splits.values() for file in split})
    if outside:
        raise DataError(
            f"data {str(path)!r} has a folder 'train' and {len(outside)} pictures outside of it and of 'validation' "
            f"and 'test', such as {outside[0]}; move them, or rename the folder"
        )
    return {name: _pictures(split) for name, split in splits.items() if split}


def _pictures(files: Sequence[Path]) -> Pictures:
    """Pictures in files, in their order."""
    import datasets

    features = datasets.Features({"image": datasets.Image(decode=False)})
    return Pictures(datasets.Dataset.from_dict({"image": [str(file) for file in files]}, features=features))


def _dataset(data: str, builder: str, **arguments: object) -> dict[str, Pictures]:
    """The splits that the Hugging Face `datasets` library finds."""
    import datasets

    datasets.disable_progress_bars()
    splits = {}
    try:
        loaded: Mapping[str, datasets.Dataset] = datasets.load_dataset(builder, **arguments)
        for name, rows in loaded.items():
            column = _image_column(data, rows.features)
            splits[name] = Pictures(rows.cast_column(column, datasets.Image(decode=False)), column)
    except DataError:
        raise
    except Exception as error:  # of many kinds: network, file system, arrow, configuration
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise DataError(
            f"data {data!r} cannot be read: {reason}. It must be 'digits', a folder of images, a .parquet or "
            ".npz file, or a dataset's name on the Hugging Face hub"
        ) from error
    return splits


def _image_column(data: str, features: Mapping[str, object]) -> str:
    """The name of the column that holds images."""
    import datasets

    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    named = [name for name in ("image", "img", "images", "jpg", "png") if name in features]
    for name in (*typed, *named):
        return name
    columns = ", ".join(features) or "none"
    raise DataError(f"data {data!r} has no column of images; its columns are {columns}")


def _named(data: str, found: dict[str, Pictures]) -> dict[str, Pictures]:
    """The splits under the names that are used here; a single one, whatever its name, is "train"."""
    splits = {
        ours: found[theirs] for ours, names in _SPLIT_NAMES.items() for theirs in names if theirs in found
    }
    if len(found) == 1:
        splits = {"train": next(iter(found.values()))}
    if "train" not in splits:
        raise DataError(f"data {data!r} has splits {', '.join(found)}; one of several must be called 'train'")
    if not splits["train"]:
        raise DataError(f"data {data!r} holds no images")
    return splits
