"""Finds and reads bundles: folders REPOSITORY/MODEL/VERSION/ with a manifest and two graphs.

No name of a request becomes part of a path: models and versions are found by listing folders.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format

from glowserve.images import Preparation
from glowserve.runtime.errors import BundleError
from glowserve.v1 import manifest_pb2

MANIFEST = "manifest.json"
CHECKSUM = "manifest.json.sha256"
FORWARD = "forward.onnx"
REVERSE = "reverse.onnx"
FORMAT_VERSION = 1

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


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
        return Preparation(self.manifest.preparation.filter, self.manifest.preparation.background)

    def read(self, name: str) -> bytes:
        """The content of a file of the bundle.

        Raises:
            BundleError: the file is missing, or its SHA-256 is not the one in the manifest.
        """
        entry = next((file for file in self.manifest.files if file.name == name), None)
        if entry is None:
            raise BundleError(
                f"bundle {self.path}: the manifest does not mention {name}; export the model again"
            )
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise BundleError(f"bundle {self.path}: {name} cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleError(
                f"bundle {self.path}: {name} is not the file that was exported (its SHA-256 differs); "
                "export the model again"
            )
        return data


def open_bundle(path: Path) -> Bundle:
    """Opens the bundle in a VERSION folder, and reads its manifest. The folders' names are the model's and the version.

    Raises:
        BundleError: there is no bundle, its manifest is damaged, or this release cannot read its format.
    """
    try:
        data, checksum = (path / MANIFEST).read_bytes(), (path / CHECKSUM).read_bytes()
    except OSError as error:
        name = Path(error.filename).name
        raise BundleError(f"bundle {path}: {name} cannot be read: {error.strerror}") from error
    if checksum != manifest_checksum(data):
        raise BundleError(
            f"bundle {path}: {MANIFEST} is not the file that was exported (its SHA-256 is not the one in {CHECKSUM}); "
            "export the model again"
        )
    try:
        manifest = json_format.Parse(data, manifest_pb2.Manifest())
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise BundleError(f"bundle {path}: {MANIFEST} is not a manifest: {error}") from error
    _check(path, manifest)
    folder = path.absolute()
    # A copied or renamed bundle has the names of its folders, not those in its manifest.
    if _VERSION.fullmatch(folder.name):
        manifest.model, manifest.version = folder.parent.name, int(folder.name)
    return Bundle(path, manifest)


def manifest_checksum(manifest: bytes) -> bytes:
    """The content of the file CHECKSUM for the content of the file MANIFEST, in the format of sha256sum."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def _check(path: Path, manifest: manifest_pb2.Manifest) -> None:
    if manifest.format_version != FORMAT_VERSION:
        raise BundleError(
            f"bundle {path}: its format is version {manifest.format_version} and this service reads "
            f"{FORMAT_VERSION}; export the model with this version of glowserve"
        )
    image = manifest.image
    size = image.height * image.width * image.channels
    if not (size and image.channels in (1, 3) and 1 <= image.n_bits <= 8 and image.latent_size == size):
        raise BundleError(f"bundle {path}: the manifest's image is not one: {_one_line(image)}")
    if manifest.randomness != manifest_pb2.RANDOMNESS_VERSION_PHILOX_BOX_MULLER:
        raise BundleError(f"bundle {path}: its randomness, {manifest.randomness}, is of an unknown version")
    if not manifest.calibration.bits_per_dim or not all(
        map(math.isfinite, manifest.calibration.bits_per_dim)
    ):
        raise BundleError(
            f"bundle {path}: the manifest has no calibration, or no finite one; export the model again"
        )
    try:
        Preparation(manifest.preparation.filter, manifest.preparation.background)
    except ValueError as error:
        raise BundleError(f"bundle {path}: preparation: {error}") from error


def _one_line(message: manifest_pb2.ImageSpec) -> str:
    return " ".join(str(message).split())


def versions(model: Path) -> list[int]:
    """The versions in a MODEL folder, ascending: the folders that have a number as their name, and a manifest."""
    return sorted(
        int(folder.name)
        for folder in model.iterdir()
        if _VERSION.fullmatch(folder.name) and (folder / MANIFEST).is_file()
    )


def find_versions(repository: Path) -> dict[str, list[int]]:
    """The versions, ascending, of each model in a repository, by the model's name.

    Raises:
        BundleError: there is no such folder, or it cannot be listed.
    """
    if not repository.is_dir():
        raise BundleError(f"repository {repository}: there is no such folder; `glowserve export` makes one")
    found = {}
    try:
        for model in sorted(repository.iterdir()):
            if model.is_dir() and MODEL_NAME.fullmatch(model.name) and (numbers := versions(model)):
                found[model.name] = numbers
    except OSError as error:
        raise BundleError(f"repository {repository}: it cannot be listed: {error}") from error
    return found


def fingerprint(path: Path) -> tuple[object, ...]:
    """The inodes, sizes and times of the bundle's files in a VERSION folder. They differ after a file has changed."""

    def state(name: str) -> object:
        try:
            found = (path / name).stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    return tuple(state(name) for name in (MANIFEST, CHECKSUM, FORWARD, REVERSE))


def newest_bundle(model: Path) -> Bundle:
    """Opens the newest bundle in a REPOSITORY/MODEL folder, or the bundle in a VERSION folder.

    Raises:
        BundleError: there is no bundle, or the newest bundle cannot be opened.
    """
    if (model / MANIFEST).is_file():
        return open_bundle(model)
    numbers = versions(model) if model.is_dir() else []
    if not numbers:
        raise BundleError(
            f"model {model}: there is no bundle VERSION/{MANIFEST} in it; "
            f"`glowserve export CHECKPOINT {model}` writes one"
        )
    return open_bundle(model / str(numbers[-1]))
