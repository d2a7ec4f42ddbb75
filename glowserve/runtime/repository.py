"""Finds and reads bundles: folders REPOSITORY/MODEL/VERSION/ with a manifest, graphs and numbers.

No name of a request becomes part of a path: models and versions are found by listing folders.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from glowserve.images import Preparation
from glowserve.messages import preparation_of
from glowserve.runtime.errors import BundleError
from glowserve.runtime.graphs import MAX_GRAPH_BYTES
from glowserve.runtime.manifest import (
    CALIBRATION,
    CHECKSUM,
    CLASS_CALIBRATION,
    FLOW,
    MANIFEST,
    MODEL_NAME,
    VERSION,
    read_listed_file,
    read_manifest,
)
from glowserve.v1 import manifest_pb2

FORWARD = "forward.onnx"
REVERSE = "reverse.onnx"
EXPLAIN = "explain.onnx"
PLACES = "explain.npy"
"""The mean and the spread of each place: see `glowserve.runtime.explanation`."""
ATTRIBUTES = "attributes.npz"
"""Directions in the latent space: see `glowserve.runtime.attributes`."""


@dataclass(frozen=True)
class Bundle:
    """A bundle with its manifest. `read` reads and checks the graphs."""

    path: Path
    """The VERSION folder."""

    manifest: manifest_pb2.Manifest
    """The manifest, checked."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, W, C of an image."""
        image = self.manifest.image
        return image.height, image.width, image.channels

    @property
    def preparation(self) -> Preparation:
        """How pictures are converted to the model's images."""
        return preparation_of(self.manifest.preparation)

    @cached_property  # each batch asks for them, and there may be a thousand
    def classes(self) -> list[str]:
        """The names of the classes of a class-conditional model, in the order of its graphs; empty of other models."""
        return [each.name for each in self.manifest.flow.classes]

    def has(self, name: str) -> bool:
        """Whether the manifest lists a file of that name."""
        return any(file.name == name for file in self.manifest.files)

    def read(self, name: str, *, most: int = MAX_GRAPH_BYTES) -> bytes:
        """The content of a file of the bundle, of at most that many bytes.

        Raises:
            BundleError: the file is missing, or it is not the file that the manifest describes.
        """
        return read_listed_file(self.path, self.manifest, name, most=most)


def open_bundle(path: Path) -> Bundle:
    """Opens the bundle in a VERSION folder, and reads its manifest. The folders' names are the model's and the version.

    Raises:
        BundleError: there is no bundle, its manifest is damaged or makes no sense, or its format is unknown.
    """
    manifest = read_manifest(path)
    folder = path.absolute()
    # A copied or renamed bundle has the names of its folders, not those in its manifest.
    if VERSION.fullmatch(folder.name):
        manifest.model, manifest.version = folder.parent.name, int(folder.name)
    return Bundle(path, manifest)


@dataclass(frozen=True)
class Listing:
    """The models in a repository."""

    versions: dict[str, list[int]] = field(default_factory=dict)
    """The versions of each model that has any, ascending, by the model's name. Not all may be readable."""

    unreadable: dict[str, str] = field(default_factory=dict)
    """Why the folder of a model cannot be listed, by the model's name."""

    ignored: dict[str, str] = field(default_factory=dict)
    """Why a folder is neither a model nor a version, by its name: FOLDER or MODEL/FOLDER."""


def list_repository(repository: Path) -> Listing:
    """Lists a repository. Names that begin with a dot, and files beside the folders of models, are passed over.

    Raises:
        BundleError: there is no such folder, or it cannot be listed.
    """
    listing = Listing()
    try:
        models = sorted(repository.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"repository {repository}: there is no such folder; `glowserve export` makes one"
        ) from None
    except OSError as error:
        raise BundleError(f"repository {repository}: it cannot be listed: {error.strerror}") from error
    for model in models:
        if not model.name.startswith("."):
            _list_model(model, listing)
    return listing


def without_models(repository: Path) -> str:
    """What is wrong with a repository in which no model was found, and what to do."""
    if has_bundle(repository):
        return (
            f"repository {repository} is the folder of one model or version; "
            "give the folder in which MODEL/VERSION/ lies"
        )
    return (
        f"repository {repository} holds no bundle MODEL/VERSION/{MANIFEST}; "
        "`glowserve export CHECKPOINT REPOSITORY/MODEL` writes one"
    )


def _list_model(model: Path, listing: Listing) -> None:
    name = model.name
    if not MODEL_NAME.fullmatch(name):
        if _is_folder(model):
            listing.ignored[name] = (
                "a model's name is 1 to 128 letters, digits, dots, dashes and underscores, and begins with a letter "
                "or a digit"
            )
        return
    try:
        numbers, ignored = _list_versions(model)
    except NotADirectoryError:
        return
    except FileNotFoundError:  # deleted since, or a link
        if model.is_symlink():
            listing.ignored[name] = "it is a symbolic link to nothing"
        return
    except OSError as error:
        listing.unreadable[name] = f"its folder cannot be listed: {error.strerror}"
        return
    listing.ignored.update({f"{name}/{folder}": why for folder, why in ignored.items()})
    if numbers:
        listing.versions[name] = numbers
    elif not ignored:
        listing.ignored[name] = "there is no version in it"


def _list_versions(model: Path) -> tuple[list[int], dict[str, str]]:
    """The versions in a MODEL folder, ascending, and why other folders in it are none.

    Raises:
        OSError: the folder cannot be listed.
    """
    numbers, ignored = [], {}
    for folder in sorted(model.iterdir()):
        name = folder.name
        if name.startswith("."):
            continue
        if not VERSION.fullmatch(name):
            if _is_folder(folder):
                ignored[name] = "a version's name is a whole number from 1, without leading zeros"
            continue
        try:
            (folder / MANIFEST).stat()
        except FileNotFoundError:
            ignored[name] = f"there is no {MANIFEST} in it"
            continue
        except NotADirectoryError:
            ignored[name] = "it is not a folder"
            continue
        except OSError:  # it may be a version: opening it will say what is wrong
            pass
        numbers.append(int(name))
    return sorted(numbers), ignored


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False


def has_bundle(model: Path) -> bool:
    """Whether a folder is a REPOSITORY/MODEL folder with a version, or a VERSION folder."""
    try:
        return os.path.lexists(model / MANIFEST) or bool(_list_versions(model)[0])
    except OSError:
        return False


Fingerprint: TypeAlias = "tuple[object, ...]"
"""The state of a bundle's files."""


def fingerprint(path: Path) -> Fingerprint:
    """The state of the bundle's files in a VERSION folder. It differs after one or its permissions changed."""

    def state(name: str) -> object:
        try:
            found = (path / name).stat()
        except OSError as error:
            return error.errno
        return (
            *(found.st_ino, found.st_size, found.st_mtime_ns),
            *(found.st_mode, found.st_uid, found.st_gid),  # it may be readable now
        )

    numbers = (CALIBRATION, CLASS_CALIBRATION, PLACES, ATTRIBUTES)
    return tuple(state(name) for name in (MANIFEST, CHECKSUM, FLOW, FORWARD, REVERSE, EXPLAIN, *numbers))


def newest_bundle(model: Path) -> Bundle:
    """Opens the newest bundle in a REPOSITORY/MODEL folder, or the bundle in a VERSION folder.

    Raises:
        BundleError: there is no bundle, or the newest bundle cannot be opened.
    """
    with suppress(OSError):
        (model / MANIFEST).stat()
        return open_bundle(model)
    try:
        numbers = _list_versions(model)[0]
    except (FileNotFoundError, NotADirectoryError):
        numbers = []
    except OSError as error:
        raise BundleError(f"model {model}: its folder cannot be listed: {error.strerror}") from error
    if not numbers:
        raise BundleError(
            f"model {model}: there is no bundle VERSION/{MANIFEST} in it; "
            f"`glowserve export CHECKPOINT {model}` writes one"
        )
    return open_bundle(model / str(numbers[-1]))
