"""The heat maps of `glowserve score --explain DIR`: one for each picture, and which of its parts are out of line."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from glowserve.cli.failure import Failure
from glowserve.cli.picture_tables import read_picture
from glowserve.cli.target import Target
from glowserve.heat_map import heat_map
from glowserve.images import UInt8Array, open_encoded, prepare
from glowserve.messages import preparation_of
from glowserve.output import printable
from glowserve.results import ScoredImages
from glowserve.scores import Part

# So many parts are named in a line.
_NAMED = 3
# Bytes of a file's name; most file systems take 255.
_LONGEST_NAME = 200


class DrawnPicture(NamedTuple):
    """A picture whose heat map is drawn."""

    heat_map: Path
    """The file."""

    parts: Sequence[Part]
    """Its parts, the farthest from usual first."""


class HeatMaps:
    """Draws a heat map for each picture of an `iter_scores`, with the version that is served when it begins.

    Args:
        folder: where the PNG files appear; it is made if there is none. Files of these names are replaced.
        target: what explains.

    Raises:
        RequestError: there is no such model.
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, target: Target) -> None:
        self._client, self._folder = target.client, folder
        manifest = self._client.manifest(model=target.model)
        self._model, self.version = manifest.model, manifest.version
        self._shape = manifest.image.height, manifest.image.width, manifest.image.channels
        self._preparation = preparation_of(manifest.preparation)
        self._kept: dict[int, bytes] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def open(self, names: Iterable[str]) -> Iterator[_KeptPicture]:
        """The pictures as `iter_scores` takes them. What it reads is kept until it has scored it."""
        for i, name in enumerate(names):
            yield _KeptPicture(name, i, self._kept)

    def draw(self, scores: ScoredImages) -> list[DrawnPicture]:
        """Draws the pictures that have been scored. Removes older files in place of those that cannot be.

        Raises:
            RequestError: the service does not explain them.
            OSError: a file cannot be written.
        """
        for error in scores.errors:
            self._kept.pop(error.index, None)
            self._file(error.index, error.name).unlink(missing_ok=True)
        if not len(scores):
            return []
        files = [self._kept.pop(i) for i in scores.indices]
        explained = self._client.explain(files, model=self._model, version=self.version)
        drawn = []
        for i, name, data, deviations, parts in zip(
            scores.indices, scores.names, files, explained.deviations, explained.parts, strict=True
        ):
            path = self._file(i, name)
            heat_map(self._prepared(data), deviations).save(path)
            drawn.append(DrawnPicture(path, parts))
        return drawn

    def _prepared(self, data: bytes) -> UInt8Array:
        """The image that the service makes of a picture that it has accepted."""
        with open_encoded(data) as picture:
            return prepare(picture, *self._shape, self._preparation, max_pixels=sys.maxsize)

    def _file(self, index: int, name: str) -> Path:
        """A name after the picture's, and after its place among all: two pictures may have one name."""
        stem = printable(Path(name).stem).encode()[:_LONGEST_NAME].decode(errors="ignore")
        return self._folder / f"{index:06}-{stem}.png"


class _KeptPicture:
    """A picture as an open file, whose bytes are kept when it is read."""

    def __init__(self, name: str, index: int, kept: dict[int, bytes]) -> None:
        self.name = name
        self._index, self._kept = index, kept

    def read(self) -> bytes:
        data = self._kept[self._index] = read_picture(self.name)
        return data


def check_folder(folder: Path, scored: Iterable[Path]) -> None:
    """Checks that heat maps may lie in a folder.

    Args:
        folder: DIR.
        scored: the files and folders that are scored.

    Raises:
        Failure: it is a file, or would be scored.
    """
    shown = printable(str(folder))
    if folder.exists() and not folder.is_dir():
        raise Failure(f"--explain is {shown}, a file; name a folder", 2)
    if any(each.resolve() == folder.resolve() for each in scored):
        raise Failure(f"--explain is {shown}, which is scored; name another folder", 2)


def outliers(parts: Sequence[Part]) -> str:
    """The parts that are farthest from usual, and in which direction: "log_det[1] -8.31, bits_per_dim +5.12"."""
    return ", ".join(map(str, parts[:_NAMED]))
