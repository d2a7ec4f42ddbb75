"""Finds the images that a run held out, long after the run: beside its checkpoint, or in data that has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from glowserve.output import printable
from glowserve_training.checkpoint import Checkpoint
from glowserve_training.config import DataConfig
from glowserve_training.data import (
    MOST_BYTES,
    HeldOutImages,
    HeldOutRecord,
    find_held_out,
    load_held_out,
    load_unseen,
    read_held_out,
    write_held_out,
)
from glowserve_training.errors import DataError, HeldOutError, RunError

HELD_OUT = "held_out.npz"
"""The file beside a checkpoint."""


@dataclass(frozen=True)
class HeldOut:
    """What a checkpoint says of the images that were held out in its training."""

    checkpoint: Path
    """The checkpoint; the images may lie beside it."""

    data: DataConfig
    """The data that the model was trained on."""

    digest: str
    """`HeldOutImages.digest`."""

    record: HeldOutRecord | None
    """Each of the images; None in old checkpoints, for which the data must be as it was."""

    def load(self, data: str | None, say: Callable[[str], None]) -> HeldOutImages:
        """The images: from the file beside the checkpoint, else from the data.

        Args:
            data: where to look; None for the training data. Data in which most of the images are not are taken for
                data that the model was not trained on: all of it is used, see `load_unseen`.
            say: called with a warning if some images, or all, are others than those held out.

        Raises:
            HeldOutError: `data` is None, and most of the images are no longer in the training data.
            DataError: the data cannot be read.
        """
        if (kept := self._kept(data)) is not None:
            return kept
        config = self.data if data is None else replace(self.data, data=data)
        try:
            images = self._find(config, say)
            if images is None and data is not None:
                images = load_unseen(config)
                say(
                    f"warning: {data!r} does not yield the images that were held out in training; the results are "
                    "meaningless if the model was trained on any of these images"
                )
        except DataError as error:
            if data is not None:
                raise
            raise DataError(f"{error}. {self._sought()}") from error
        if images is None:
            raise HeldOutError(
                f"data {config.data!r} no longer yields the images that were held out in training: files were added, "
                f"removed or changed, or are decoded differently here. {self._sought()}"
            )
        return images

    def _kept(self, data: str | None) -> HeldOutImages | None:
        """The images in the file beside the checkpoint, or in a file that was given; None if it has others."""
        path = self.checkpoint.parent / HELD_OUT if data is None else Path(data)
        if path.suffix != ".npz":
            return None
        images = read_held_out(path)
        return images if images is not None and images.digest == self.digest else None

    def _find(self, config: DataConfig, say: Callable[[str], None]) -> HeldOutImages | None:
        """The images that are still in the data; None if most are not."""
        if self.record is None or read_held_out(Path(config.data)) is not None:
            images = load_held_out(config)
            return images if images.digest == self.digest else None
        images, missing = find_held_out(self.record, config)
        if not missing:
            return images
        for part in ("validation", "test", "calibration"):
            if 2 * len(getattr(images, part)) < len(getattr(self.record, part)):
                return None
        say(
            f"warning: {len(missing)} of the {len(self.record)} images that were held out in training are not in "
            f"{config.data!r}, such as {printable(missing[0].key)}; the others are used"
        )
        return images

    def _sought(self) -> str:
        count = "" if self.record is None else f"{len(self.record)} "
        return (
            f"Looked there for the {count}images that were held out in training, and for "
            f"{self.checkpoint.parent / HELD_OUT}. If the data has moved, give its new path with --data; otherwise "
            "give images that the model was not trained on with --data"
        )


def held_out_of(checkpoint: Checkpoint, path: Path) -> HeldOut:
    """What a checkpoint that was loaded from `path` says of its held-out images."""
    return HeldOut(path, checkpoint.data, checkpoint.training.held_out_digest, checkpoint.held_out)


def keep_held_out(images: HeldOutImages, folder: Path) -> None:
    """Writes the images to a file in the folder of a checkpoint, unless they are too large to keep.

    Raises:
        RunError: it cannot be written.
    """
    path = folder / HELD_OUT
    if images.nbytes > MOST_BYTES:
        return
    try:
        write_held_out(images, path)
    except OSError as error:
        raise RunError(
            f"the held-out images could not be written to {path}: {error.strerror or error}. Make room, and the same "
            "command resumes from the last saved state"
        ) from error
