"""Prints, inside an image, what must not be there: a line for each finding.

docker run --user 0 --entrypoint python IMAGE - < contents.py
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat

COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "ld", "make")
MODULES = ("torch", "lightning", "onnx", "datasets", "sklearn", "pytest")
SECRETS = (".pem", ".key", ".env", "id_rsa", "tokens", ".netrc", ".pypirc")
# Authorities that everybody has.
PUBLIC = ("/etc/ssl/certs", "/usr/share/ca-certificates", "/usr/lib/ssl")
LIBRARIES = "/opt/glowserve"


def main() -> None:
    """Walks through all files of the image's own."""
    for name in COMPILERS:
        if path := shutil.which(name):
            print(f"a compiler: {path}")
    for name in MODULES:
        if importlib.util.find_spec(name):
            print(f"not needed to serve: {name}")
    for folder, folders, files in os.walk("/", onerror=None):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys", "/dev")]
        if folder.startswith(LIBRARIES) and os.path.basename(folder) in ("tests", "pip"):
            print(f"tests, or pip: {folder}")
        if folder.endswith((".cache", "/wheels")):
            print(f"a cache: {folder}")
        for name in files:
            look_at(os.path.join(folder, name))


def look_at(path: str) -> None:
    """Prints what is wrong with one file."""
    state = os.lstat(path)
    if stat.S_ISREG(state.st_mode) and state.st_mode & (stat.S_ISUID | stat.S_ISGID):
        print(f"setuid or setgid: {path}")
    if path.endswith(SECRETS) and not path.startswith(PUBLIC) and not path.endswith("cacert.pem"):
        if not path.endswith("roots.pem"):
            print(f"perhaps a secret: {path}")


main()
