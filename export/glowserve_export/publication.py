"""Publishes a bundle as the next version of its model: a folder that is complete once it has its name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glowserve.files import publish_directory, staging_directory
from glowserve.runtime.attributes import bundle_attributes
from glowserve.runtime.calibration import open_class_scorer, open_scorer
from glowserve.runtime.repository import Bundle, open_bundle
from glowserve.v1 import manifest_pb2
from glowserve_export.manifest import manifest_files


@contextmanager
def staged(model_dir: Path) -> Iterator[Path]:
    """A staging folder in `model_dir`, which is made for it, and removed if it stays empty."""
    is_new = not model_dir.exists()
    model_dir.mkdir(parents=True, exist_ok=True)
    try:
        with staging_directory(model_dir) as staging:
            yield staging
    finally:
        if is_new:
            with suppress(OSError):  # it is not empty
                model_dir.rmdir()


def add_file(bundle: Bundle, name: str, content: bytes) -> manifest_pb2.File:
    """Writes a file into the folder of a bundle that is not published yet; returns its entry in the manifest."""
    (bundle.path / name).write_bytes(content)
    file = bundle.manifest.files.add()
    file.name, file.sha256, file.size = name, hashlib.sha256(content).hexdigest(), len(content)
    return file


def publish(bundle: Bundle) -> Bundle:
    """Writes the manifest of a bundle in a `staged` folder, and renames the folder to the next version."""
    manifest, model_dir = bundle.manifest, bundle.path.parent
    while True:
        manifest.version = _next_version(model_dir)
        for name, data in manifest_files(manifest).items():
            (bundle.path / name).write_bytes(data)
        _check(open_bundle(bundle.path))
        target = model_dir / str(manifest.version)
        with suppress(FileExistsError):  # another export took the number
            publish_directory(bundle.path, target)
            return open_bundle(target)


def _check(bundle: Bundle) -> None:
    """Nothing is published that could not be opened."""
    open_scorer(bundle)
    open_class_scorer(bundle)
    bundle_attributes(bundle)


def _next_version(model_dir: Path) -> int:
    """One more than the highest number among the names in the folder: no version is used twice."""
    return max((int(path.name) for path in model_dir.iterdir() if path.name.isdecimal()), default=0) + 1
