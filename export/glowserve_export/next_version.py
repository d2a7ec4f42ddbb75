"""The next version of a bundle: the same graphs, and other numbers beside them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from glowserve.runtime.manifest import FLOW, VERSION
from glowserve.runtime.repository import Bundle
from glowserve_export.errors import ExportError
from glowserve_export.publication import staged


@contextmanager
def next_version(bundle: Bundle, replaced: Collection[str]) -> Iterator[Bundle]:
    """A copy of a bundle in a staging folder beside it, which `publish` makes the next version of its model.

    Args:
        bundle: the bundle; it stays as it is.
        replaced: names of files that the copy lacks: they are to be added.

    Raises:
        ExportError: the bundle's folder is no version of a model.
        glowserve.runtime.errors.BundleError: a file of the bundle is damaged.
    """
    folder = bundle.path.absolute()
    if not VERSION.fullmatch(folder.name):
        raise ExportError(
            f"{bundle.path} is no folder REPOSITORY/MODEL/VERSION, beside which the next version could be written; "
            "move it to MODEL/1"
        )
    with staged(folder.parent) as staging:
        copy = Bundle(staging, type(bundle.manifest)())
        copy.manifest.CopyFrom(bundle.manifest)
        del copy.manifest.files[:]
        for file in bundle.manifest.files:
            if file.name not in (FLOW, *replaced):  # `publish` writes the former
                (staging / file.name).write_bytes(bundle.read(file.name))
                copy.manifest.files.append(file)
        copy.manifest.created_at.GetCurrentTime()
        copy.manifest.glowserve_version = importlib.metadata.version("glowserve")
        yield copy
