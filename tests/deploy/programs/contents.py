"""Prints, inside an image, what must not be there: a line for each finding.

docker run --user 0 --entrypoint python IMAGE - < contents.py
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
from pathlib import Path

COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "ld", "make")
MODULES = ("torch", "lightning", "onnx", "datasets", "sklearn", "pytest")
SECRETS = (".pem", ".key", ".env", "id_rsa", "tokens", ".netrc", ".pypirc")
# Authorities that everybody has.
PUBLIC = ("/etc/ssl/certs", "/usr/share/ca-certificates", "/usr/lib/ssl")
AUTHORITIES = ("cacert.pem", "roots.pem")
LIBRARIES = "/opt/glowserve"


def main() -> None:
    """Walks through all files of the image's own."""
    for name in COMPILERS:
        if path := shutil.which(name):
            print(f"a compiler: {path}")
    for name in MODULES:
        if importlib.util.find_spec(name):
            print(f"not needed to serve: {name}")
    for folder, folders, files in os.walk("/"):
        here = Path(folder)
        folders[:] = [name for name in folders if str(here / name) not in ("/proc", "/sys", "/dev")]
        if here.is_relative_to(LIBRARIES) and here.name in ("tests", "pip"):
            print(f"tests, or pip: {here}")
        if here.name in (".cache", "wheels"):
            print(f"a cache: {here}")
        for name in files:
            look_at(here / name)


def look_at(path: Path) -> None:
    """Prints what is wrong with one file."""
    state = path.lstat()
    if stat.S_ISREG(state.st_mode) and state.st_mode & (stat.S_ISUID | stat.S_ISGID):
        print(f"setuid or setgid: {path}")
    if path.name.endswith(SECRETS) and path.name not in AUTHORITIES and not str(path).startswith(PUBLIC):
        print(f"perhaps a secret: {path}")


main()
