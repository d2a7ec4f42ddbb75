"""Makes installed packages impossible to import, for the programs beside this file."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class RefusingFinder:
    """Raises ModuleNotFoundError for the named packages and all that is inside them."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = tuple(packages)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Called by the import system before any other finder."""
        if any(name == package or name.startswith(f"{package}.") for package in self._packages):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def refuse_imports(packages: Sequence[str]) -> None:
    """Refuses the packages from now on, and checks that each import really fails.

    Raises:
        SystemExit: a package could be imported nevertheless.
    """
    sys.meta_path.insert(0, RefusingFinder(packages))
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError:
            continue
        raise SystemExit(f"{package} could be imported")
