"""A user's script that scores a picture with a bundle and with a server, beside the user's own packages.

Each of the user's packages sets `mine = True`. Prints the bits per dimension of both scores as JSON.

Usage: own_packages.py OWN_PACKAGES_FIRST PACKAGE,PACKAGE,... REPOSITORY/MODEL HOST:PORT PICTURE
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence


def check_own_packages(names: Sequence[str]) -> None:
    """Imports the user's packages.

    Raises:
        SystemExit: another package of that name was imported.
    """
    for name in names:
        package = importlib.import_module(name)
        if not getattr(package, "mine", False):
            raise SystemExit(f"{name} is {package.__file__}")


_, own_packages_first, packages, model, server, picture = sys.argv
names = packages.split(",")
if own_packages_first == "yes":
    check_own_packages(names)

import glowserve  # noqa: E402

embedded = glowserve.open(model).score(picture)
with glowserve.Client(server) as client:
    served = client.score(picture)
check_own_packages(names)
print(json.dumps({"embedded": embedded.bits_per_dim.tolist(), "served": served.bits_per_dim.tolist()}))
