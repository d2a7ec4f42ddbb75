"""Prepared images that are too many for memory: a file, written once and mapped.

FOLDER/train.npy    the images, uint8 [N, H, W, C]
FOLDER/train.json   what they were made of; it is written last, and only beside a whole file
FOLDER/.lock        held while they are made: who comes meanwhile waits, and finds them

Reading a batch from the map touches the pages of its images alone, and what was read the system may drop again.
The map is read-only: of a private one that can be written to, Linux wants to know where its pages would go.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock

from glowserve.files import atomic_write
from glowserve.images import UInt8Array
from glowserve_training.data.damage import Damage
from glowserve_training.errors import DataError


class ImageFile:
    """The file of prepared images in a folder, which is made if needed.

    Args:
        folder: FOLDER.
        key: what the images are made of, as JSON has it; a file of another key is made again.
    """

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(folder / ".lock")
        self._folder = folder
        self.path = folder / "train.npy"
        self._record = folder / "train.json"
        self._key = json.loads(json.dumps(key))

    def open(self) -> tuple[UInt8Array, Damage] | None:
        """The images, mapped, and what was left out; None if there is no whole file of this key."""
        try:
            record = json.loads(self._record.read_text())
            images: UInt8Array = np.lib.format.open_memmap(self.path, mode="r")
            same = record["key"] == self._key and record["shape"] == list(images.shape)
            return (images, Damage(**record["damage"])) if same and images.dtype == np.uint8 else None
        except Exception:  # whatever a file that is missing, cut short or foreign leads to
            return None

    def write(self, images: Iterable[UInt8Array], shape: tuple[int, ...], damage: Damage) -> None:
        """Makes the file anew.

        Args:
            images: each uint8 [H, W, C].
            shape: [N, H, W, C], N the most images that may come; the file holds those that do.
            damage: what was left out, once all have come.

        Raises:
            DataError: there is no room, or another reason why the file cannot be written.
        """
        for old in (self._record, self.path, *self._folder.glob(".train.*.part")):
            old.unlink(missing_ok=True)
        try:
            if shutil.disk_usage(self._folder).free < math.prod(shape):  # better known now than in an hour
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with atomic_write(self.path) as file:
                _write_header(file, shape)
                written = 0
                for image in images:
                    file.write(image.data)
                    written += 1
                file.seek(0)
                _write_header(file, (written, *shape[1:]))  # as long as before: it has room for any N
            record = {"key": self._key, "shape": [written, *shape[1:]], "damage": asdict(damage)}
            with atomic_write(self._record) as file:
                file.write(json.dumps(record, indent=2).encode() + b"\n")
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be written: {error.strerror or error}. The images do not fit into memory and need "
                f"{math.prod(shape) / 2**20:.1f} MiB there; make room, or use a folder on another disk"
            ) from error


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
