"""A memory-mapped file of prepared images that are too large for memory.

FOLDER/train.npy    the images, uint8 [N, H, W, C]
FOLDER/train.json   what they were made from; written last, so that it exists only beside a complete file
FOLDER/.lock        held while the file is written; other processes wait for it and then use the file

Reading a batch loads only the pages of its images, and the system can drop them again. The map is read-only because
Linux would reserve memory for a writable private map.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock

from glowserve.files import atomic_write
from glowserve.images import UInt8Array
from glowserve_training.data.unreadable import UnreadableImages
from glowserve_training.errors import DataError


class ImageFile:
    """The file of prepared images in a folder.

    Args:
        folder: FOLDER; made if needed.
        key: what the images are made from, as JSON; a file with another key is replaced.
    """

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(folder / ".lock")
        self._folder = folder
        self.path = folder / "train.npy"
        self._record = folder / "train.json"
        self._key = json.loads(json.dumps(key))

    def open(self) -> tuple[UInt8Array, UnreadableImages] | None:
        """The mapped images, and the images that were skipped; None if there is no complete file with this key."""
        try:
            record = json.loads(self._record.read_text())
            images: UInt8Array = np.lib.format.open_memmap(self.path, mode="r")
            same = record["key"] == self._key and record["shape"] == list(images.shape)
            unreadable = UnreadableImages(**record["damage"])  # the key that version 0.1.0 wrote
            return (images, unreadable) if same and images.dtype == np.uint8 else None
        except Exception:  # many kinds, for files that are missing, truncated or foreign
            return None

    def labels(self) -> list[int]:
        """The classes of the images, if they have any; the file is complete."""
        return list(json.loads(self._record.read_text()).get("labels", []))

    def write(
        self,
        images: Iterable[UInt8Array],
        shape: tuple[int, ...],
        unreadable: UnreadableImages,
        labels: Sequence[int] = (),
    ) -> None:
        """Writes the file, in place of an older one.

        Args:
            images: the images, each uint8 [H, W, C].
            shape: [N, H, W, C], with N the largest possible number of images; skipped ones leave no gaps.
            unreadable: the skipped images, complete once `images` is exhausted.
            labels: the classes of the others, if they have any, complete likewise.

        Raises:
            DataError: there is not enough room, or the file cannot be written for another reason.
        """
        for old in (self._record, self.path, *self._folder.glob(".train.*.part")):
            old.unlink(missing_ok=True)
        try:
            # A full disk would otherwise be noticed only after hours of decoding.
            if shutil.disk_usage(self._folder).free < math.prod(shape):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = self._write_images(images, shape)
            record = {"key": self._key, "shape": [written, *shape[1:]], "damage": asdict(unreadable)}
            if labels:
                record["labels"] = list(labels)
            with atomic_write(self._record) as file:
                file.write(json.dumps(record, indent=2).encode() + b"\n")
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be written: {error.strerror or error}. The images do not fit into memory and need "
                f"{math.prod(shape) / 2**20:.1f} MiB there; make room, or use a folder on another disk"
            ) from error

    def _write_images(self, images: Iterable[UInt8Array], shape: tuple[int, ...]) -> int:
        """Returns how many there were."""
        with atomic_write(self.path) as file:
            _write_header(file, shape)
            written = 0
            for image in images:
                file.write(image.data)
                written += 1
            file.seek(0)
            _write_header(
                file, (written, *shape[1:])
            )  # as long as the first header, which has room for any N
        return written


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
